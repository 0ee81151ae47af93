// bn_add_act, as Python sees it.
#include "bindings/batch_norm.h"
#include "cuda/kernels.h"

namespace py = pybind11;
using namespace resnet_fused::cuda;

namespace cuda_on_cpu::bindings {

namespace {

BnAddActParams params_of(const py::dict& d) {
  BnAddActParams p;
  p.x = pointer_of<const void>(d, "x");
  p.shortcut = pointer_of<const void>(d, "shortcut");
  p.out = pointer_of<void>(d, "out");
  if (d.contains("bn")) p.bn = batch_norm_of(d["bn"]);
  if (d.contains("shortcut_bn")) p.shortcut_bn = batch_norm_of(d["shortcut_bn"]);
  p.projected = d["projected"].cast<bool>();
  p.relu = d["relu"].cast<bool>();
  p.dtype = static_cast<Dtype>(d["dtype"].cast<int>());
  p.layout = d["channels_last"].cast<bool>() ? Layout::kNHWC : Layout::kNCHW;
  p.batch = d["batch"].cast<int32_t>();
  p.channels = d["channels"].cast<int32_t>();
  p.area = d["area"].cast<int32_t>();
  return p;
}

// dtype, vector, channels_last, shortcut
py::tuple tuple_of(const BnAddActVariant& v) {
  return py::make_tuple(static_cast<int>(v.dtype), v.vector, v.layout == Layout::kNHWC, static_cast<int>(v.shortcut));
}

py::dict run(const std::vector<BufferArg>& buffers, const py::dict& params, int sm_count, const std::string& schedule,
             uint32_t seed) {
  const BnAddActParams p = params_of(params);
  begin_session(buffers, schedule, seed);
  launch_bn_add_act(p, {nullptr, sm_count});
  return end_session();
}

py::tuple select(const py::dict& params) { return tuple_of(select_bn_add_act(params_of(params))); }

py::dict walk(const py::dict& params, int vector, int sm_count) {
  const BnWalk w = walk_bn_add_act(params_of(params), vector, sm_count);
  return py::dict(py::arg("all_lanes") = w.all_lanes, py::arg("items") = w.items, py::arg("lanes") = w.lanes,
                  py::arg("slots") = w.slots, py::arg("groups") = w.groups, py::arg("splits") = w.splits,
                  py::arg("block") = w.block(), py::arg("grid") = w.grid());
}

py::list compiled() {
  py::list l;
  for (const BnAddActVariant& v : compiled_bn_add_act()) l.append(tuple_of(v));
  return l;
}

const Binding binding([](py::module_& m) {
  m.def("run_bn_add_act", &run);
  m.def("select_bn_add_act", &select);
  m.def("walk_bn_add_act", &walk);
  m.def("compiled_bn_add_act", &compiled);
});

}  // namespace

}  // namespace cuda_on_cpu::bindings
