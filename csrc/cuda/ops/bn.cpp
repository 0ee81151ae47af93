// BatchNorm ops on CUDA: check, convert to one memory format, launch. Nothing waits for the device.
#include <torch/csrc/stable/accelerator.h>

#include "common/problem.h"
#include "cuda/ops/first_use.h"
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

Tensor bn_add_act(const Tensor& x, const OptTensor& gamma, const OptTensor& beta, const OptTensor& mean,
                  const OptTensor& var, double eps, const OptTensor& residual, bool relu,
                  bool /*internal: torch pools CUDA memory*/) {
  constexpr const char* op = "bn_add_act";
  check_activation(op, x);
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_batch_norm(op, bn, x.size(1), x);
  check_residual(op, residual, x.sizes(), x);
  const DeviceGuard guard(x.get_device_index());
  return normalise(x, bn, residual, relu, suggests_channels_last(x));
}

Tensor bn_add_bn_act(const Tensor& x, const OptTensor& gamma, const OptTensor& beta, const OptTensor& mean,
                     const OptTensor& var, double eps, const Tensor& shortcut, const OptTensor& shortcut_gamma,
                     const OptTensor& shortcut_beta, const OptTensor& shortcut_mean, const OptTensor& shortcut_var,
                     double shortcut_eps, bool relu, bool /*internal*/) {
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
  IMPL_CHECKED(m, bn_add_act);
  IMPL_CHECKED(m, bn_stats);
  IMPL_CHECKED(m, bn_add_bn_act);
  IMPL_CHECKED(m, bn_act_backward_reduce);
  IMPL_CHECKED(m, bn_add_act_backward_reduce);
  IMPL_CHECKED(m, bn_act_backward);
}

}  // namespace resnet_fused::cuda
