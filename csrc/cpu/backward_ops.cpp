// CPU kernel of the weight-gradient op: check, pick an engine, run it.
#include "common/problem.h"
#include "cpu/engines.h"

namespace resnet_fused::cpu {

namespace {

Tensor conv_backward_weight(Tensor grad, Tensor x, OptTensor pre_gamma, OptTensor pre_beta, OptTensor pre_mean,
                            OptTensor pre_var, double pre_eps, Tensor weight, Ints stride, Ints padding, Ints dilation,
                            int64_t groups) {
  constexpr const char* op = "conv_backward_weight";
  const Conv conv = make_conv(op, x, weight, {}, {}, stride, padding, dilation, groups,
                              {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps});
  check_output_gradient(op, grad, conv);
  const bool channels_last = suggests_channels_last(weight);
  const Engine engine = engine_of(conv);
  if (const auto own = engine == Engine::kWinograd ? winograd_gradient
                       : engine == Engine::kDirect ? direct_gradient
                                                   : nullptr) {
    const Tensor to = aten_empty(weight.sizes(), weight, channels_last);
    if (own(conv, aten_contiguous(grad, /*channels_last=*/true), to)) return to;
  }
  const Tensor activated = without_pre(conv).x;
  const auto of = [&](const Tensor& g, const Tensor& x, const Tensor& w) {
    return aten_convolution_backward(GradientOf::kWeight, g, x, w, conv.stride, conv.padding, conv.dilation, groups);
  };
  const ScalarType dtype = scalar_type_of(weight);
  // Where the stride is wider than the image, oneDNN with AMX returns uninitialised memory for some taps.
  const int64_t width = conv.stride[1] > conv.w ? 1 : conv.ow;
  if (!onednn_is_wrong(element_of(dtype), width, cpu_features()))
    return aten_contiguous(of(grad, activated, weight), channels_last);
  constexpr ScalarType kWide = ScalarType::Float;
  return aten_contiguous(aten_to(of(aten_to(grad, kWide), aten_to(activated, kWide), aten_to(weight, kWide)), dtype),
                         channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) { m.impl("conv_backward_weight", TORCH_BOX(&conv_backward_weight)); }

}  // namespace resnet_fused::cpu
