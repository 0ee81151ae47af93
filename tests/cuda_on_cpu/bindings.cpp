// The kernels, as Python sees them. Tensors arrive as addresses; the caller keeps them alive.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda/kernels.h"
#include "cuda_on_cpu.h"

namespace py = pybind11;
using namespace resnet_fused::cuda;

namespace {

using BufferArg = std::tuple<std::string, uintptr_t, size_t, bool>;  // name, address, bytes, writable
using VectorArg = std::tuple<uintptr_t, int64_t, int>;               // address or 0, stride in elements, Dtype

ChannelVector vector_of(const VectorArg& v) {
  const auto& [address, stride, dtype] = v;
  return {reinterpret_cast<const void*>(address), stride, static_cast<Dtype>(dtype)};
}

// gamma, beta, mean, var, bias; eps
BatchNormVectors batch_norm_of(const py::tuple& bn) {
  BatchNormVectors v;
  ChannelVector* fields[] = {&v.gamma, &v.beta, &v.mean, &v.var, &v.bias};
  for (int i = 0; i < 5; ++i) *fields[i] = vector_of(bn[i].cast<VectorArg>());
  v.eps = bn[5].cast<double>();
  return v;
}

BnAddActParams params_of(const py::dict& d) {
  BnAddActParams p;
  p.x = reinterpret_cast<const void*>(d["x"].cast<uintptr_t>());
  p.shortcut = reinterpret_cast<const void*>(d["shortcut"].cast<uintptr_t>());
  p.out = reinterpret_cast<void*>(d["out"].cast<uintptr_t>());
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

py::dict run_bn_add_act(const std::vector<BufferArg>& buffers, const py::dict& params, int sm_count, bool reverse) {
  std::vector<cuda_on_cpu::Buffer> known;
  for (const auto& [name, address, bytes, writable] : buffers)
    known.push_back({name, reinterpret_cast<char*>(address), bytes, writable, {}});
  cuda_on_cpu::begin(std::move(known), reverse);
  launch_bn_add_act(params_of(params), {nullptr, sm_count});
  const cuda_on_cpu::Report report = cuda_on_cpu::end();
  py::dict d;
  d["errors"] = report.errors;
  d["error_count"] = report.error_count;
  d["bytes_loaded"] = report.bytes_loaded;
  d["bytes_stored"] = report.bytes_stored;
  d["wide_accesses"] = report.wide_accesses;
  return d;
}

}  // namespace

PYBIND11_MODULE(kernels, m) {
  m.def("run_bn_add_act", &run_bn_add_act);
  m.def("select_bn_add_act", [](const py::dict& p) { return tuple_of(select_bn_add_act(params_of(p))); });
  m.def("walk_bn_add_act", [](const py::dict& p, int vector, int sm_count) {
    const BnAddActWalk w = walk_bn_add_act(params_of(p), vector, sm_count);
    return py::dict(py::arg("all_lanes") = w.all_lanes, py::arg("items") = w.items, py::arg("lanes") = w.lanes,
                    py::arg("slots") = w.slots, py::arg("groups") = w.groups, py::arg("splits") = w.splits,
                    py::arg("block") = w.block(), py::arg("grid") = w.grid());
  });
  m.def("compiled_bn_add_act", [] {
    py::list l;
    for (const BnAddActVariant& v : compiled_bn_add_act()) l.append(tuple_of(v));
    return l;
  });
}
