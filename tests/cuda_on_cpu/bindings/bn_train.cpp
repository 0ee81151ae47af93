// The training kernels, as Python sees them.
#include "bindings/batch_norm.h"
#include "cuda/kernels.h"

namespace py = pybind11;
using namespace resnet_fused::cuda;

namespace cuda_on_cpu::bindings {

namespace {

BnShape shape_of(const py::dict& d) {
  return {static_cast<Dtype>(d["dtype"].cast<int>()), d["channels_last"].cast<bool>() ? Layout::kNHWC : Layout::kNCHW,
          d["batch"].cast<int32_t>(), d["channels"].cast<int32_t>(), d["area"].cast<int32_t>()};
}

ChannelVector vector_of(const py::dict& d, const char* key) {
  if (!d.contains(key)) return {};
  const auto [address, stride, dtype] = d[key].cast<std::tuple<uintptr_t, int64_t, int>>();
  return {reinterpret_cast<const void*>(address), stride, static_cast<Dtype>(dtype)};
}

BnStatsParams stats_of(const py::dict& d) {
  BnStatsParams p;
  p.x = pointer_of<const void>(d, "x");
  p.shape = shape_of(d);
  p.workspace = pointer_of<void>(d, "workspace");
  p.mean = pointer_of<void>(d, "first");
  p.var = pointer_of<void>(d, "second");
  return p;
}

BnGradient gradient_of(const py::dict& d) {
  BnGradient g;
  g.grad = pointer_of<const void>(d, "grad");
  g.x = pointer_of<const void>(d, "x");
  g.out = pointer_of<const void>(d, "out");
  if (d.contains("bn")) g.bn = batch_norm_of(d["bn"]);
  g.relu = d["relu"].cast<bool>();
  g.shape = shape_of(d);
  return g;
}

BnFinishParams finish_of(const py::dict& d) {
  BnFinishParams p;
  p.parts.data = pointer_of<void>(d, "workspace");
  p.parts.what = d["moments"].cast<bool>() ? Parts::kMoments : Parts::kSums;
  p.parts.parts = d["parts"].cast<int32_t>();
  p.parts.channels = d["channels"].cast<int32_t>();
  p.parts.each = d["each"].cast<uint32_t>();
  p.parts.total = d["total"].cast<uint32_t>();
  p.parts.dtype = static_cast<Dtype>(d["dtype"].cast<int>());
  p.first = pointer_of<void>(d, "first");
  p.second = pointer_of<void>(d, "second");
  p.var = vector_of(d, "var");
  p.eps = d["eps"].cast<double>();
  return p;
}

template <typename Params>
py::dict run(void (*launch)(const Params&, const Queue&), const Params& p, const std::vector<BufferArg>& buffers,
             int sm_count, const std::string& schedule, uint32_t seed) {
  begin_session(buffers, schedule, seed);
  launch(p, {nullptr, sm_count});
  return end_session();
}

py::dict run_stats(const std::vector<BufferArg>& buffers, const py::dict& d, int sm_count, const std::string& schedule,
                   uint32_t seed) {
  return run(&launch_bn_stats, stats_of(d), buffers, sm_count, schedule, seed);
}

// Pointers may be absent where only the workspace is asked for.
BnBackwardReduceParams reduce_of(const py::dict& d) {
  return {gradient_of(d), pointer_of<void>(d, "workspace"), pointer_of<void>(d, "first"), pointer_of<void>(d, "second"),
          pointer_of<void>(d, "kept")};
}

py::dict run_reduce(const std::vector<BufferArg>& buffers, const py::dict& d, int sm_count, const std::string& schedule,
                    uint32_t seed) {
  return run(&launch_bn_backward_reduce, reduce_of(d), buffers, sm_count, schedule, seed);
}

py::dict run_backward(const std::vector<BufferArg>& buffers, const py::dict& d, int sm_count,
                      const std::string& schedule, uint32_t seed) {
  const BnBackwardParams p{gradient_of(d), vector_of(d, "sum_g"), vector_of(d, "sum_g_xhat"), d["count"].cast<double>(),
                           pointer_of<void>(d, "to")};
  return run(&launch_bn_backward, p, buffers, sm_count, schedule, seed);
}

py::dict run_finish(const std::vector<BufferArg>& buffers, const py::dict& d, int sm_count, const std::string& schedule,
                    uint32_t seed) {
  return run(&launch_bn_finish, finish_of(d), buffers, sm_count, schedule, seed);
}

// dtype, vector, channels_last
py::tuple tuple_of(const BnStatsVariant& v) {
  return py::make_tuple(static_cast<int>(v.dtype), v.vector, v.layout == Layout::kNHWC);
}

// dtype, vector, channels_last, mask
py::tuple tuple_of(const BnGradientVariant& v) {
  return py::make_tuple(static_cast<int>(v.dtype), v.vector, v.layout == Layout::kNHWC, static_cast<int>(v.mask));
}

template <typename Variant>
py::list list_of(const std::vector<Variant>& variants) {
  py::list l;
  for (const Variant& v : variants) l.append(tuple_of(v));
  return l;
}

py::dict reduction(const py::dict& d, int vector, int sm_count) {
  const BnReduction r = reduce_activations(shape_of(d), vector, sm_count);
  return py::dict(py::arg("all_lanes") = r.all_lanes, py::arg("items") = r.items, py::arg("lanes") = r.lanes,
                  py::arg("slots") = r.slots, py::arg("groups") = r.groups, py::arg("parts") = r.parts(),
                  py::arg("each") = r.each, py::arg("block") = r.block());
}

const Binding binding([](py::module_& m) {
  m.def("run_bn_stats", &run_stats);
  m.def("run_bn_backward_reduce", &run_reduce);
  m.def("run_bn_backward", &run_backward);
  m.def("run_bn_finish", &run_finish);
  m.def("bn_stats_workspace",
        [](const py::dict& d, int sm_count) { return bn_stats_workspace(stats_of(d), sm_count); });
  m.def("bn_backward_reduce_workspace",
        [](const py::dict& d, int sm_count) { return bn_backward_reduce_workspace(reduce_of(d), sm_count); });
  m.def("bn_finish_workspace", [](const py::dict& d) { return finish_workspace(finish_of(d).parts); });
  m.def("reduce_activations", &reduction);
  m.def("select_bn_stats", [](const py::dict& d) { return tuple_of(select_bn_stats(stats_of(d))); });
  m.def("select_bn_gradient",
        [](const py::dict& d) { return tuple_of(select_bn_gradient(gradient_of(d), pointer_of<void>(d, "to"))); });
  m.def("compiled_bn_stats", [] { return list_of(compiled_bn_stats()); });
  m.def("compiled_bn_backward_reduce", [] { return list_of(compiled_bn_backward_reduce()); });
  m.def("compiled_bn_backward", [] { return list_of(compiled_bn_backward()); });
});

}  // namespace

}  // namespace cuda_on_cpu::bindings
