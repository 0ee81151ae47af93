// Python bindings of the max-pooling kernels.
#include "bindings/batch_norm.h"
#include "cuda/kernels/kernels.h"

using namespace resnet_fused::cuda;

namespace cuda_on_cpu::bindings {

namespace {

// in, out, kernel, stride, pad
PoolAxis axis_of(const Value& t) {
  const auto [in, out, kernel, stride, pad] = t.as<std::tuple<int32_t, int32_t, int32_t, int32_t, int32_t>>();
  return {in, out, kernel, stride, pad};
}

PoolShape shape_of(const Value& d) {
  return {static_cast<Dtype>(d["dtype"].as<int>()), d["batch"].as<int32_t>(), d["channels"].as<int32_t>(),
          axis_of(d["h"]), axis_of(d["w"])};
}

BnPoolParams forward_of(const Value& d) {
  BnPoolParams p;
  p.x = pointer_of<const void>(d, "x");
  if (d.find("bn")) p.bn = batch_norm_of(d["bn"]);
  p.shape = shape_of(d);
  p.out = pointer_of<void>(d, "out");
  p.argmax = pointer_of<void>(d, "argmax");
  return p;
}

PoolBackwardParams backward_of(const Value& d) {
  return {pointer_of<const void>(d, "grad"), pointer_of<const void>(d, "argmax"), shape_of(d),
          pointer_of<void>(d, "to")};
}

template <typename Params>
Value run(void (*launch)(const Params&, const Queue&), const Params& p, const std::vector<BufferArg>& buffers,
          int sm_count, const std::string& schedule) {
  begin_session(buffers, schedule, 1);
  launch(p, {nullptr, sm_count});
  return end_session();
}

// dtype, vector, window, argmax
Value value_of(const PoolVariant& v) { return std::tuple(v.dtype, v.vector, v.window, v.argmax); }

Value list_of(const std::vector<PoolVariant>& variants) {
  Value::List l;
  for (const PoolVariant& v : variants) l.push_back(value_of(v));
  return l;
}

const Binding bindings[] = {
    {"run_bn_pool", [](const std::vector<BufferArg>& buffers, const Value& d, int sm_count,
                       const std::string& s) { return run(&launch_bn_pool, forward_of(d), buffers, sm_count, s); }},
    {"run_pool_backward",
     [](const std::vector<BufferArg>& buffers, const Value& d, int sm_count, const std::string& s) {
       return run(&launch_pool_backward, backward_of(d), buffers, sm_count, s);
     }},
    {"select_bn_pool", [](const Value& d) { return value_of(select_bn_pool(forward_of(d))); }},
    {"select_pool_backward", [](const Value& d) { return value_of(select_pool_backward(backward_of(d))); }},
    {"compiled_bn_pool", [] { return list_of(compiled_bn_pool()); }},
    {"compiled_pool_backward", [] { return list_of(compiled_pool_backward()); }},
    {"div", [](uint32_t n, uint32_t by) { return FastDivmod(by).div(n); }},
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
