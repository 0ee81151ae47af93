// conv_backward_weight on the CPU: by Winograd's algorithm, by AMX's direct kernel, or by torch.
#include <atomic>

#include "common/parallel.h"
#include "cpu/engines.h"
#include "cpu/environment.h"
#include "cpu/memory.h"
#include "cpu/scale_shift.h"
#include "cpu/simd/kernels.h"

namespace resnet_fused::cpu {

namespace {

// Sums each part of the pixels and finishes the weight's channels; `blocks` of them, at least `grain` a task.
template <typename Kernels, typename Gradient>
bool sum_and_finish(const Kernels& kernels, Gradient& q, const Tensor& x, int64_t blocks, int64_t grain,
                    const Tensor& to) {
  const Tensor sums =
      output_buffer(Ints{q.parts, static_cast<int64_t>(sizeof(float) / x.element_size()), 1, q.part_floats}, x,
                    /*internal=*/true);
  q.sums = static_cast<float*>(sums.mutable_data_ptr());
  parallel_for(0, q.tasks, 1, [&](int64_t begin, int64_t end) { kernels.sum(q, begin, end); });
  const int64_t strides[4] = {to.stride(0), to.stride(1), to.stride(2), to.stride(3)};
  std::atomic<bool> finite{true};
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    if (!kernels.finish(q, to.mutable_data_ptr(), strides, begin, end)) finite = false;
  });
  return finite;
}

// to = the weight gradient of conv(x), or of conv(relu(pre(x))). grad is channels_last and dense. Returns false if a
// result was not finite.
bool winograd_gradient(const Conv& conv, const Tensor& grad, const Tensor& to) {
  const Tensor x = aten_contiguous(conv.x, /*channels_last=*/true);
  const auto pre = scale_shift<float>(conv.pre, std::nullopt, conv.c);

  const Dtype dtype = dtype_of(x);
  const WinogradGradientKernels& kernels = kernels_of(dtype, isa_of(dtype, cpu_features())).winograd_gradient;
  WinogradGradient q{};
  q.x = x.const_data_ptr();
  if (conv.pre.present()) q.scale = pre.scale.data(), q.shift = pre.shift.data();
  q.grad = grad.const_data_ptr();
  set_sizes(q, conv);
  kernels.tile(q, static_cast<int>(torch::stable::get_num_threads()));
  return sum_and_finish(kernels, q, x, q.c, 16, to);
}

// The same; returns false also if the shape needs too much scratch.
bool direct_gradient(const Conv& conv, const Tensor& grad, const Tensor& to) {
  const Dtype dtype = dtype_of(conv.x);
  const DirectGradientKernels& kernels = kernels_of(dtype, isa_of(dtype, cpu_features())).direct_gradient;
  if (grad.numel() == 0 || to.numel() == 0) return false;
  const Tensor x = aten_contiguous(conv.x, /*channels_last=*/true);
  auto pre = scale_shift<float>(conv.pre, std::nullopt, conv.c);
  pre.scale.resize(conv.c + 32), pre.shift.resize(conv.c + 32);

  DirectGradient q{};
  q.x = x.const_data_ptr();
  if (conv.pre.present()) q.scale = pre.scale.data(), q.shift = pre.shift.data();
  q.grad = grad.const_data_ptr();
  set_geometry(q, conv);
  if (!kernels.tile(q, static_cast<int>(torch::stable::get_num_threads()))) return false;
  return sum_and_finish(kernels, q, x, kernels.blocks(q), 1, to);
}

// torch's gradient, from a materialised activation.
Tensor torch_gradient(const Conv& conv, const Tensor& grad, bool in_float32) {
  const ScalarType dtype = scalar_type_of(conv.weight), type = in_float32 ? ScalarType::Float : dtype;
  const auto in = [&](const Tensor& t) { return in_float32 ? aten_to(t, type) : t; };
  const Tensor to = aten_convolution_backward(GradientOf::kWeight, in(grad), in(without_pre(conv).x), in(conv.weight),
                                              conv.stride, conv.padding, conv.dilation, conv.groups);
  return in_float32 ? aten_to(to, dtype) : to;
}

Tensor conv_backward_weight(Tensor grad, Tensor x, OptTensor pre_gamma, OptTensor pre_beta, OptTensor pre_mean,
                            OptTensor pre_var, double pre_eps, Tensor weight, Ints stride, Ints padding, Ints dilation,
                            int64_t groups) {
  constexpr const char* op = "conv_backward_weight";
  const ReadsEnvironmentOnce here;
  const Conv conv = make_conv(op, x, weight, {}, {}, stride, padding, dilation, groups,
                              {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps});
  check_output_gradient(op, grad, conv);
  ConvShape shape = shape_of(conv, Purpose::kWeightGradient);
  shape.grad_nhwc = is_dense(grad, /*channels_last=*/true);
  const Plan plan = make_plan(shape, cpu_features());
  const bool channels_last = suggests_channels_last(weight);
  if (plan.engine != Engine::kComposed) {
    const auto own = plan.engine == Engine::kWinograd ? winograd_gradient : direct_gradient;
    const Tensor to = aten_empty(weight.sizes(), weight, channels_last);
    if (own(conv, aten_contiguous(grad, /*channels_last=*/true), to)) return to;
  }
  return in_format(torch_gradient(conv, grad, plan.in_float32), channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) { m.impl("conv_backward_weight", TORCH_BOX(&conv_backward_weight)); }

}  // namespace resnet_fused::cpu
