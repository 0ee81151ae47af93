// conv_forward on the CPU: act(conv(x) + residual) in training, by the plan of its forward pass.
#include "cpu/run_conv.h"

namespace resnet_fused::cpu {

namespace {

// Weights change at every step, so nothing is kept.
Tensor conv_forward(Tensor x, Tensor weight, OptTensor bias, Ints stride, Ints padding, Ints dilation, int64_t groups,
                    OptTensor residual, bool relu, bool internal) {
  const Conv conv = make_conv("conv_forward", x, weight, bias, {}, stride, padding, dilation, groups);
  check_residual("conv_forward", residual, conv.output_sizes(), conv.x);
  return run_conv(
      conv, Purpose::kForward, [&](const Tensor*) { return residual; }, relu, /*keep_packed=*/false, internal);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) { m.impl("conv_forward", TORCH_BOX(&conv_forward)); }

}  // namespace resnet_fused::cpu
