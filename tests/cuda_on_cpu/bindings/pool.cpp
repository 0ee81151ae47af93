// The kernels of max-pooling, as Python sees them.
#include "bindings/batch_norm.h"
#include "cuda/kernels.h"

namespace py = pybind11;
using namespace resnet_fused::cuda;

namespace cuda_on_cpu::bindings {

namespace {

// in, out, kernel, stride, pad
PoolAxis axis_of(const py::tuple& t) {
  return {t[0].cast<int32_t>(), t[1].cast<int32_t>(), t[2].cast<int32_t>(), t[3].cast<int32_t>(), t[4].cast<int32_t>()};
}

PoolShape shape_of(const py::dict& d) {
  return {static_cast<Dtype>(d["dtype"].cast<int>()), d["batch"].cast<int32_t>(), d["channels"].cast<int32_t>(),
          axis_of(d["h"]), axis_of(d["w"])};
}

BnPoolParams forward_of(const py::dict& d) {
  BnPoolParams p;
  p.x = pointer_of<const void>(d, "x");
  if (d.contains("bn")) p.bn = batch_norm_of(d["bn"]);
  p.shape = shape_of(d);
  p.out = pointer_of<void>(d, "out");
  p.taken = pointer_of<void>(d, "taken");
  return p;
}

PoolBackwardParams backward_of(const py::dict& d) {
  return {pointer_of<const void>(d, "grad"), pointer_of<const void>(d, "taken"), shape_of(d),
          pointer_of<void>(d, "to")};
}

template <typename Params>
py::dict run(void (*launch)(const Params&, const Queue&), const Params& p, const std::vector<BufferArg>& buffers,
             int sm_count, const std::string& schedule) {
  begin_session(buffers, schedule, 1);
  launch(p, {nullptr, sm_count});
  return end_session();
}

// dtype, vector, side, argmax
py::tuple tuple_of(const PoolVariant& v) {
  return py::make_tuple(static_cast<int>(v.dtype), v.vector, v.side, v.argmax);
}

py::list list_of(const std::vector<PoolVariant>& variants) {
  py::list l;
  for (const PoolVariant& v : variants) l.append(tuple_of(v));
  return l;
}

const Binding binding([](py::module_& m) {
  m.def("run_bn_pool", [](const std::vector<BufferArg>& buffers, const py::dict& d, int sm_count,
                          const std::string& s) { return run(&launch_bn_pool, forward_of(d), buffers, sm_count, s); });
  m.def("run_pool_backward",
        [](const std::vector<BufferArg>& buffers, const py::dict& d, int sm_count, const std::string& s) {
          return run(&launch_pool_backward, backward_of(d), buffers, sm_count, s);
        });
  m.def("select_bn_pool", [](const py::dict& d) { return tuple_of(select_bn_pool(forward_of(d))); });
  m.def("select_pool_backward", [](const py::dict& d) { return tuple_of(select_pool_backward(backward_of(d))); });
  m.def("compiled_bn_pool", [] { return list_of(compiled_bn_pool()); });
  m.def("compiled_pool_backward", [] { return list_of(compiled_pool_backward()); });
  m.def("quotient", [](uint32_t n, uint32_t by) { return Divisor(by).quotient(n); });
});

}  // namespace

}  // namespace cuda_on_cpu::bindings
