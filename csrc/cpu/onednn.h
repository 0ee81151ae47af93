// oneDNN's convolution, through torch's own copy of it. BatchNorm is folded into the reordered weight, residual and
// ReLU are post-ops; where the weight is larger than the output, in float32, one pass of ours does all three.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

bool onednn_available();

// act(bn(conv(x)) + residual) as a new tensor in conv's memory format. Nothing where the weight, BatchNorm's scale or
// shift, or what is folded of them is not finite: oneDNN's infinities and NaNs would not be where eager's are.
OptTensor onednn_conv(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed);

}  // namespace resnet_fused::cpu
