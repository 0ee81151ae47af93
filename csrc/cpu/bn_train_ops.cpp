// CPU kernels of the training ops: check, convert to one memory format, run.
#include "common/problem.h"
#include "cpu/bn_add_act.h"
#include "cpu/bn_train.h"
#include "cpu/memory.h"

namespace resnet_fused::cpu {

namespace {

std::tuple<Tensor, Tensor> bn_stats(Tensor x) {
  check_activation("bn_stats", x);
  const bool channels_last = suggests_channels_last(x);
  return batch_moments(aten_contiguous(x, channels_last), channels_last);
}

Tensor bn_add_bn_act(Tensor x, OptTensor gamma, OptTensor beta, OptTensor mean, OptTensor var, double eps,
                     Tensor shortcut, OptTensor shortcut_gamma, OptTensor shortcut_beta, OptTensor shortcut_mean,
                     OptTensor shortcut_var, double shortcut_eps, bool relu, bool internal) {
  constexpr const char* op = "bn_add_bn_act";
  check_activation(op, x);
  const BatchNorm bn{gamma, beta, mean, var, eps};
  const BatchNorm shortcut_bn{shortcut_gamma, shortcut_beta, shortcut_mean, shortcut_var, shortcut_eps};
  check_batch_norm(op, bn, x.size(1), x);
  check_like(op, "shortcut", shortcut, x);
  check_batch_norm(op, shortcut_bn, x.size(1), x, "shortcut_");
  const bool channels_last = suggests_channels_last(x);
  const Tensor out = output_buffer(sizes_of(x), x, internal, channels_last);
  const Tensor dense = aten_contiguous(x, channels_last), added = aten_contiguous(shortcut, channels_last);
  if (shortcut_bn.present())
    bn_add_bn_act_into(out, dense, bn, added, shortcut_bn, relu, channels_last);
  else
    bn_add_act_into(out, dense, std::nullopt, bn, added, relu, channels_last);
  return out;
}

// Converted to x's memory format.
BnGradient make_gradient(const Tensor& grad, const Tensor& x, BatchNorm bn, const OptTensor& out, bool relu) {
  const bool channels_last = suggests_channels_last(x);
  OptTensor dense_out;
  if (out) dense_out = aten_contiguous(*out, channels_last);
  return {aten_contiguous(grad, channels_last),
          aten_contiguous(x, channels_last),
          std::move(bn),
          dense_out,
          relu,
          channels_last};
}

std::tuple<Tensor, Tensor> bn_act_backward_reduce(Tensor grad, Tensor x, OptTensor gamma, OptTensor beta,
                                                  OptTensor mean, OptTensor var, double eps, OptTensor out, bool relu) {
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_gradient("bn_act_backward_reduce", grad, x, bn, out);
  return gradient_sums(make_gradient(grad, x, bn, out, relu));
}

std::tuple<Tensor, Tensor, Tensor> bn_add_act_backward_reduce(Tensor grad, Tensor x, OptTensor gamma, OptTensor beta,
                                                              OptTensor mean, OptTensor var, double eps, Tensor out,
                                                              bool internal) {
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_gradient("bn_add_act_backward_reduce", grad, x, bn, out);
  const BnGradient q = make_gradient(grad, x, bn, out, /*relu=*/true);
  const Tensor masked_grad = output_buffer(sizes_of(x), x, internal, q.channels_last);
  const auto [sum_g, sum_g_xhat] = gradient_sums(q, masked_grad);
  return {masked_grad, sum_g, sum_g_xhat};
}

Tensor bn_act_backward(Tensor grad, Tensor x, OptTensor gamma, OptTensor beta, OptTensor mean, OptTensor var,
                       double eps, OptTensor out, bool relu, OptTensor sum_g, OptTensor sum_g_xhat, double count,
                       bool internal) {
  constexpr const char* op = "bn_act_backward";
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_gradient(op, grad, x, bn, out);
  check_sums(op, sum_g, sum_g_xhat, count, x);
  const BnGradient q = make_gradient(grad, x, bn, out, relu);
  const Tensor to = output_buffer(sizes_of(x), x, internal, q.channels_last);
  gradient_into(to, q, sum_g, sum_g_xhat, count);
  return to;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) {
  m.impl("bn_stats", TORCH_BOX(&bn_stats));
  m.impl("bn_add_bn_act", TORCH_BOX(&bn_add_bn_act));
  m.impl("bn_act_backward_reduce", TORCH_BOX(&bn_act_backward_reduce));
  m.impl("bn_add_act_backward_reduce", TORCH_BOX(&bn_add_act_backward_reduce));
  m.impl("bn_act_backward", TORCH_BOX(&bn_act_backward));
}

}  // namespace resnet_fused::cpu
