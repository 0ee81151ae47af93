// Python bindings of the training kernels.
#include "bindings/batch_norm.h"
#include "cuda/kernels/kernels.h"

using namespace resnet_fused::cuda;

namespace cuda_on_cpu::bindings {

namespace {

ChannelVector vector_of(const Value& d, const char* key) {
  if (!d.find(key)) return {};
  const auto [address, stride, dtype] = d[key].as<std::tuple<uintptr_t, int64_t, int>>();
  return {reinterpret_cast<const void*>(address), stride, static_cast<Dtype>(dtype)};
}

BnStatsParams stats_of(const Value& d) {
  BnStatsParams p;
  p.x = pointer_of<const void>(d, "x");
  p.shape = bn_shape_of(d);
  p.workspace = pointer_of<void>(d, "workspace");
  p.mean = pointer_of<void>(d, "first");
  p.var = pointer_of<void>(d, "second");
  return p;
}

BnGradient gradient_of(const Value& d) {
  BnGradient g;
  g.grad = pointer_of<const void>(d, "grad");
  g.x = pointer_of<const void>(d, "x");
  g.out = pointer_of<const void>(d, "out");
  if (d.find("bn")) g.bn = batch_norm_of(d["bn"]);
  g.relu = d["relu"].as<bool>();
  g.shape = bn_shape_of(d);
  return g;
}

BnFinishParams finish_of(const Value& d) {
  BnFinishParams p;
  p.parts.data = pointer_of<void>(d, "workspace");
  p.parts.what = d["moments"].as<bool>() ? Parts::kMoments : Parts::kSums;
  p.parts.parts = d["parts"].as<int32_t>();
  p.parts.channels = d["channels"].as<int32_t>();
  p.parts.each = d["each"].as<uint32_t>();
  p.parts.total = d["total"].as<uint32_t>();
  p.parts.dtype = static_cast<Dtype>(d["dtype"].as<int>());
  p.first = pointer_of<void>(d, "first");
  p.second = pointer_of<void>(d, "second");
  p.var = vector_of(d, "var");
  p.eps = d["eps"].as<double>();
  return p;
}

template <typename Params>
Value run(void (*launch)(const Params&, const Queue&), const Params& p, const std::vector<BufferArg>& buffers,
          int sm_count, const std::string& schedule, uint32_t seed) {
  begin_session(buffers, schedule, seed);
  launch(p, {nullptr, sm_count});
  return end_session();
}

Value run_stats(const std::vector<BufferArg>& buffers, const Value& d, int sm_count, const std::string& schedule,
                uint32_t seed) {
  return run(&launch_bn_stats, stats_of(d), buffers, sm_count, schedule, seed);
}

// Pointers may be absent when only the workspace size is queried.
BnBackwardReduceParams reduce_of(const Value& d) {
  return {gradient_of(d), pointer_of<void>(d, "workspace"), pointer_of<void>(d, "first"), pointer_of<void>(d, "second"),
          pointer_of<void>(d, "masked_grad")};
}

Value run_reduce(const std::vector<BufferArg>& buffers, const Value& d, int sm_count, const std::string& schedule,
                 uint32_t seed) {
  return run(&launch_bn_backward_reduce, reduce_of(d), buffers, sm_count, schedule, seed);
}

Value run_backward(const std::vector<BufferArg>& buffers, const Value& d, int sm_count, const std::string& schedule,
                   uint32_t seed) {
  const BnBackwardParams p{gradient_of(d), vector_of(d, "sum_g"), vector_of(d, "sum_g_xhat"), d["count"].as<double>(),
                           pointer_of<void>(d, "to")};
  return run(&launch_bn_backward, p, buffers, sm_count, schedule, seed);
}

Value run_finish(const std::vector<BufferArg>& buffers, const Value& d, int sm_count, const std::string& schedule,
                 uint32_t seed) {
  return run(&launch_bn_finish, finish_of(d), buffers, sm_count, schedule, seed);
}

// dtype, vector, channels_last
Value value_of(const BnStatsVariant& v) { return std::tuple(v.dtype, v.vector, v.layout == Layout::kNHWC); }

// dtype, vector, channels_last, mask
Value value_of(const BnGradientVariant& v) { return std::tuple(v.dtype, v.vector, v.layout == Layout::kNHWC, v.mask); }

template <typename Variant>
Value list_of(const std::vector<Variant>& variants) {
  Value::List l;
  for (const Variant& v : variants) l.push_back(value_of(v));
  return l;
}

Value reduction(const Value& d, int vector, int sm_count) {
  const BnReduction r = reduce_activations(bn_shape_of(d), vector, sm_count);
  return Value::Dict{{"all_lanes", r.all_lanes}, {"items", r.items},   {"lanes", r.lanes}, {"slots", r.slots},
                     {"groups", r.groups},       {"parts", r.parts()}, {"each", r.each},   {"block", r.block()}};
}

const Binding bindings[] = {
    {"run_bn_stats", &run_stats},
    {"run_bn_backward_reduce", &run_reduce},
    {"run_bn_backward", &run_backward},
    {"run_bn_finish", &run_finish},
    {"bn_stats_workspace", [](const Value& d, int sm_count) { return bn_stats_workspace(stats_of(d), sm_count); }},
    {"bn_backward_reduce_workspace",
     [](const Value& d, int sm_count) { return bn_backward_reduce_workspace(reduce_of(d), sm_count); }},
    {"bn_finish_workspace", [](const Value& d) { return finish_workspace(finish_of(d).parts); }},
    {"reduce_activations", &reduction},
    {"select_bn_stats", [](const Value& d) { return value_of(select_bn_stats(stats_of(d))); }},
    {"select_bn_gradient",
     [](const Value& d) { return value_of(select_bn_gradient(gradient_of(d), pointer_of<void>(d, "to"))); }},
    {"compiled_bn_stats", [] { return list_of(compiled_bn_stats()); }},
    {"compiled_bn_backward_reduce", [] { return list_of(compiled_bn_backward_reduce()); }},
    {"compiled_bn_backward", [] { return list_of(compiled_bn_backward()); }},
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
