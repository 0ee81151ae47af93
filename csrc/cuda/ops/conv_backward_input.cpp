// conv_backward_input on CUDA: a convolution of the output gradient with a flipped copy of the filter.
#include <torch/csrc/stable/accelerator.h>

#include "cuda/ops/conv.h"
#include "cuda/ops/first_use.h"

namespace resnet_fused::cuda {

namespace {

Tensor conv_backward_input(const Tensor& grad, const Tensor& weight, const Ints& padding, const Ints& dilation,
                           const OptTensor& grad_addend, bool allow_tf32, bool /*internal: torch pools CUDA memory*/) {
  const Conv conv = make_input_gradient("conv_backward_input", grad, weight, padding, dilation, grad_addend);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const ConvResult y = run_conv({with_weight(conv), Epilogue::kAffine, nullptr, grad_addend ? &*grad_addend : nullptr,
                                 /*relu=*/false, allow_tf32});
  return in_format(y.out, conv.channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CUDA, m) { IMPL_CHECKED(m, conv_backward_input); }

}  // namespace resnet_fused::cuda
