// conv_backward_reduce on the CPU: the input gradient, then one pass for the sums of the BatchNorm before it.
#include "cpu/bn_train.h"
#include "cpu/conv_backward_input.h"
#include "cpu/engines.h"

namespace resnet_fused::cpu {

namespace {

std::tuple<Tensor, Tensor, Tensor> conv_backward_reduce(Tensor grad, Tensor weight, Ints padding, Ints dilation,
                                                        Tensor x, OptTensor gamma, OptTensor beta, OptTensor mean,
                                                        OptTensor var, double eps, OptTensor grad_addend,
                                                        bool /*allow_tf32*/) {
  constexpr const char* op = "conv_backward_reduce";
  const BatchNorm bn{gamma, beta, mean, var, eps};
  const Conv forward = make_conv(op, x, weight, {}, {}, {1, 1}, padding, dilation, /*groups=*/1);
  check_conv_gradient(op, grad, forward, bn, grad_addend);
  const bool channels_last = suggests_channels_last(x);
  const ConvShape shape = shape_of(forward, Purpose::kInputGradient), backward = flipped(shape);
  Tensor to;
  if (backward.pad_h >= 0 && backward.pad_w >= 0)
    to = input_gradient(make_input_gradient(op, grad, weight, padding, dilation, grad_addend), grad_addend,
                        /*internal=*/false);
  else
    to = torchs_input_gradient(grad, weight, x.sizes(), forward.padding, forward.dilation, grad_addend, channels_last,
                               make_plan(shape, cpu_features()).in_float32);
  to = in_format(to, channels_last);
  const auto [sum_g, sum_g_xhat] =
      gradient_sums({to, aten_contiguous(x, channels_last), bn, std::nullopt, /*relu=*/true, channels_last});
  return {to, sum_g, sum_g_xhat};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) { m.impl("conv_backward_reduce", TORCH_BOX(&conv_backward_reduce)); }

}  // namespace resnet_fused::cpu
