// One convolution on a GPU, for ops that are made of several.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cuda {

// act(bn(conv(x)) + residual) by whatever the plan picks, on torch's current stream of x's device.
Tensor run_conv(const Conv& conv, const OptTensor& residual, bool relu, bool allow_tf32);

}  // namespace resnet_fused::cuda
