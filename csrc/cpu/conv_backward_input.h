// The input gradient of a convolution with stride 1 and one group, plus grad_addend, another gradient.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

// From make_input_gradient: by a convolution with the flipped filter, or by torch, as the plan says.
Tensor input_gradient(const Conv& flipped, const OptTensor& grad_addend, bool internal);

// By torch, for any padding: for an input of these sizes, as a dense tensor.
Tensor torchs_input_gradient(const Tensor& grad, const Tensor& weight, IntView sizes, const Pair& padding,
                             const Pair& dilation, const OptTensor& grad_addend, bool channels_last, bool in_float32);

}  // namespace resnet_fused::cpu
