#include "cpu/conv_backward_input.h"

#include "cpu/bn_add_act.h"
#include "cpu/environment.h"
#include "cpu/run_conv.h"

namespace resnet_fused::cpu {

Tensor torchs_input_gradient(const Tensor& grad, const Tensor& weight, IntView sizes, const Pair& padding,
                             const Pair& dilation, const OptTensor& grad_addend, bool channels_last, bool in_float32) {
  const ScalarType dtype = scalar_type_of(grad), type = in_float32 ? ScalarType::Float : dtype;
  const auto in = [&](const Tensor& t) { return in_float32 ? aten_to(t, type) : t; };
  const Tensor x = aten_empty(sizes, grad, channels_last, type);  // only its shape is read
  Tensor to = aten_convolution_backward(GradientOf::kInput, in(grad), x, in(weight), {1, 1}, padding, dilation,
                                        /*groups=*/1);
  if (in_float32) to = aten_to(to, dtype);
  to = in_format(to, channels_last);
  if (grad_addend)
    bn_add_act_into(to, to, std::nullopt, {}, aten_contiguous(*grad_addend, channels_last), /*relu=*/false,
                    channels_last);
  return to;
}

Tensor input_gradient(const Conv& conv, const OptTensor& grad_addend, bool internal) {
  const ReadsEnvironmentOnce here;
  const ConvShape forward = shape_of(conv, Purpose::kInputGradient);
  const Plan plan = make_plan(forward, cpu_features());
  if (plan.engine != Engine::kComposed || plan.flips)
    return run_conv(
        conv, plan, [&](const Tensor*) { return grad_addend; }, /*relu=*/false, /*keep_packed=*/false, internal);
  return torchs_input_gradient(conv.x, torch::stable::transpose(conv.weight, 0, 1), conv.output_sizes(),
                               {forward.pad_h, forward.pad_w}, conv.dilation, grad_addend, conv.channels_last,
                               plan.in_float32);
}

namespace {

Tensor conv_backward_input(Tensor grad, Tensor weight, Ints padding, Ints dilation, OptTensor grad_addend,
                           bool /*allow_tf32*/, bool internal) {
  const Conv conv = make_input_gradient("conv_backward_input", grad, weight, padding, dilation, grad_addend);
  return input_gradient(conv, grad_addend, internal);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) { m.impl("conv_backward_input", TORCH_BOX(&conv_backward_input)); }

}  // namespace resnet_fused::cpu
