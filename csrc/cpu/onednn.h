// oneDNN's fused convolution, through torch's own copy of it: BatchNorm folded into reordered weights, the residual
// and ReLU as post-ops.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

bool onednn_available();

// act(bn(conv(x)) + residual) as a new tensor in conv's memory format. Nothing: BatchNorm's scale or shift is not
// finite (var + eps is 0), or their products with the weight are not, and would reach outputs that they must not.
OptTensor onednn_conv(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed);

}  // namespace resnet_fused::cpu
