// CUDA implementations of the training ops: check, convert to one memory format, launch. Nothing waits for the device.
#include <torch/csrc/stable/accelerator.h>

#include "common/problem.h"
#include "cuda/kernels/kernels.h"
#include "cuda/ops/conv.h"
#include "cuda/ops/first_use.h"
#include "cuda/ops/operands.h"
#include "cuda/ops/passes.h"
#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

namespace {

using torch::stable::accelerator::DeviceGuard;

std::tuple<Tensor, Tensor> bn_stats(const Tensor& x) {
  check_activation("bn_stats", x);
  const DeviceGuard guard(x.get_device_index());
  const bool channels_last = suggests_channels_last(x);
  return batch_moments(aten_contiguous(x, channels_last), channels_last);
}

ConvProblem problem_of(const Conv& conv, bool allow_tf32) {
  ConvProblem p;
  p.dtype = dtype_of(conv.x);
  p.main = shape_of(conv);
  p.mode = conv.pre.present() ? ConvFwdMode::kPrologueStatistics : ConvFwdMode::kStatistics;
  p.groups = conv.groups;
  p.aligned = is_aligned(conv.x) && is_aligned(conv.weight);
  p.allow_tf32 = allow_tf32;
  return p;
}

// One kernel stores the pre-BN output and the moments of its tiles; bn_finish combines the moments.
std::tuple<Tensor, Tensor, Tensor> run_kernel(const Conv& conv, const ConvPlan& plan, const Queue& queue) {
  const Operands main(conv);
  const Tensor out = aten_empty(conv.output_sizes(), conv.x, /*channels_last=*/true);
  const Tensor mean = channel_sums(conv.x, conv.k), var = channel_sums(conv.x, conv.k);
  BnFinishParams last;
  last.parts.channels = static_cast<int32_t>(conv.k);
  last.parts.total = static_cast<uint32_t>(conv.n * conv.oh * conv.ow);
  last.parts.each = plan.part;
  last.parts.parts = static_cast<int32_t>((last.parts.total + last.parts.each - 1) / last.parts.each);
  const Tensor workspace = workspace_of(finish_workspace(last.parts), conv.x);
  last.parts.data = workspace.mutable_data_ptr();
  last.first = mean.mutable_data_ptr(), last.second = var.mutable_data_ptr();

  ConvFwdParams p;
  p.main = main.pointers();
  p.out = out.mutable_data_ptr();
  p.statistics = static_cast<float*>(last.parts.data);
  launch_planned(p, plan, queue);
  launch_bn_finish(last, queue);
  return {aten_contiguous(out, conv.channels_last), mean, var};
}

// torch's convolution, then a pass over its output.
std::tuple<Tensor, Tensor, Tensor> run_torch(const Conv& conv) {
  Tensor x = conv.pre.present() ? normalise(conv.x, conv.pre, std::nullopt, /*relu=*/true, conv.channels_last) : conv.x;
  // torch chooses the format from x and weight; a channels_last x is enough.
  if (conv.channels_last) x = aten_contiguous(x, true);
  const Tensor pre_bn = aten_contiguous(
      aten_convolution(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups),
      conv.channels_last);
  const auto [mean, var] = batch_moments(pre_bn, conv.channels_last);
  return {pre_bn, mean, var};
}

std::tuple<Tensor, Tensor, Tensor> conv_stats(const Tensor& x, const OptTensor& pre_gamma, const OptTensor& pre_beta,
                                              const OptTensor& pre_mean, const OptTensor& pre_var, double pre_eps,
                                              const Tensor& weight, const OptTensor& bias, const Ints& stride,
                                              const Ints& padding, const Ints& dilation, int64_t groups,
                                              bool /*keep_packed: CUDA packs no weights*/, bool allow_tf32) {
  const Conv conv = make_conv("conv_stats", x, weight, bias, {}, stride, padding, dilation, groups,
                              {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps});
  const int device = x.get_device_index();
  const DeviceGuard guard(device);
  const ConvPlan plan = plan_conv(problem_of(conv, allow_tf32), device);
  return plan.engine == ConvEngine::kTorch ? run_torch(conv) : run_kernel(conv, plan, current_queue(device));
}

Tensor bn_add_bn_act(const Tensor& x, const OptTensor& gamma, const OptTensor& beta, const OptTensor& mean,
                     const OptTensor& var, double eps, const Tensor& shortcut, const OptTensor& shortcut_gamma,
                     const OptTensor& shortcut_beta, const OptTensor& shortcut_mean, const OptTensor& shortcut_var,
                     double shortcut_eps, bool relu, bool /*internal: torch pools CUDA memory*/) {
  constexpr const char* op = "bn_add_bn_act";
  check_activation(op, x);
  const BatchNorm bn{gamma, beta, mean, var, eps};
  const BatchNorm shortcut_bn{shortcut_gamma, shortcut_beta, shortcut_mean, shortcut_var, shortcut_eps};
  check_batch_norm(op, bn, x.size(1), x);
  check_like(op, "shortcut", shortcut, x);
  check_batch_norm(op, shortcut_bn, x.size(1), x, "shortcut_");
  const DeviceGuard guard(x.get_device_index());
  const bool channels_last = suggests_channels_last(x);
  if (!shortcut_bn.present()) return normalise(x, bn, shortcut, relu, channels_last);
  const Tensor out = aten_empty(x.sizes(), x, channels_last);
  const Vectors projected(shortcut_bn, std::nullopt, x);
  add_act_into(out, aten_contiguous(x, channels_last), Vectors(bn, std::nullopt, x), shortcut, &projected, relu,
               channels_last);
  return out;
}

// The tensors of a gradient in x's memory format, and the vectors of their BatchNorm.
struct Gradient {
  Tensor grad, x;
  OptTensor out;
  Vectors bn;
  bool relu, channels_last;

  Gradient(const Tensor& from, const Tensor& x, const BatchNorm& bn, const OptTensor& from_out, bool relu)
      : grad(aten_contiguous(from, suggests_channels_last(x))),
        x(aten_contiguous(x, suggests_channels_last(x))),
        bn(bn, std::nullopt, x),
        relu(relu),
        channels_last(suggests_channels_last(x)) {
    if (from_out) out = aten_contiguous(*from_out, channels_last);
  }

  BnGradient pointers() const {
    return {
        grad.const_data_ptr(),        x.const_data_ptr(), out ? out->const_data_ptr() : nullptr, bn.pointers(), relu,
        bn_shape_of(x, channels_last)};
  }
};

// Returns both sums, and stores g in `masked_grad` if given.
std::tuple<Tensor, Tensor> gradient_sums(const Gradient& from, const OptTensor& masked_grad) {
  const Tensor sum_g = channel_sums(from.x, from.x.size(1)), sum_g_xhat = channel_sums(from.x, from.x.size(1));
  const int device = from.x.get_device_index();
  const Queue queue = current_queue(device);
  BnBackwardReduceParams p;
  p.from = from.pointers();
  if (masked_grad) p.masked_grad = masked_grad->mutable_data_ptr();
  const Tensor workspace = workspace_of(bn_backward_reduce_workspace(p, queue.sm_count), from.x);
  p.workspace = workspace.mutable_data_ptr();
  p.sum_g = sum_g.mutable_data_ptr(), p.sum_g_xhat = sum_g_xhat.mutable_data_ptr();
  launch_checked(p, queue, device);
  return {sum_g, sum_g_xhat};
}

std::tuple<Tensor, Tensor> bn_act_backward_reduce(const Tensor& grad, const Tensor& x, const OptTensor& gamma,
                                                  const OptTensor& beta, const OptTensor& mean, const OptTensor& var,
                                                  double eps, const OptTensor& out, bool relu) {
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_gradient("bn_act_backward_reduce", grad, x, bn, out);
  const DeviceGuard guard(x.get_device_index());
  return gradient_sums(Gradient(grad, x, bn, out, relu), std::nullopt);
}

std::tuple<Tensor, Tensor, Tensor> bn_add_act_backward_reduce(const Tensor& grad, const Tensor& x,
                                                              const OptTensor& gamma, const OptTensor& beta,
                                                              const OptTensor& mean, const OptTensor& var, double eps,
                                                              const Tensor& out, bool /*internal*/) {
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_gradient("bn_add_act_backward_reduce", grad, x, bn, out);
  const DeviceGuard guard(x.get_device_index());
  const Gradient from(grad, x, bn, out, /*relu=*/true);
  const Tensor masked_grad = aten_empty(x.sizes(), x, from.channels_last);
  const auto [sum_g, sum_g_xhat] = gradient_sums(from, masked_grad);
  return {masked_grad, sum_g, sum_g_xhat};
}

Tensor bn_act_backward(const Tensor& grad, const Tensor& x, const OptTensor& gamma, const OptTensor& beta,
                       const OptTensor& mean, const OptTensor& var, double eps, const OptTensor& out, bool relu,
                       const OptTensor& sum_g, const OptTensor& sum_g_xhat, double count, bool /*internal*/) {
  constexpr const char* op = "bn_act_backward";
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_gradient(op, grad, x, bn, out);
  check_sums(op, sum_g, sum_g_xhat, count, x);
  const DeviceGuard guard(x.get_device_index());
  const Gradient from(grad, x, bn, out, relu);
  const Tensor to = aten_empty(x.sizes(), x, from.channels_last);
  // The sums are passed as gamma and beta, which are also one value per channel.
  const Vectors sums({sum_g, sum_g_xhat, std::nullopt, std::nullopt}, std::nullopt, x);
  BnBackwardParams p;
  p.from = from.pointers();
  p.sum_g = sums.pointers().gamma, p.sum_g_xhat = sums.pointers().beta;
  p.count = count;
  p.to = to.mutable_data_ptr();
  const int device = x.get_device_index();
  launch_checked(p, current_queue(device), device);
  return to;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CUDA, m) {
  IMPL_CHECKED(m, bn_stats);
  IMPL_CHECKED(m, conv_stats);
  IMPL_CHECKED(m, bn_add_bn_act);
  IMPL_CHECKED(m, bn_act_backward_reduce);
  IMPL_CHECKED(m, bn_add_act_backward_reduce);
  IMPL_CHECKED(m, bn_act_backward);
}

}  // namespace resnet_fused::cuda
