// oneDNN's convolution, as bundled with torch. BatchNorm is folded into the reordered weight; residual and ReLU are
// post-ops. If, in float32, the weight is larger than the output, one pass of ours does all three instead.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

bool onednn_available();

// act(bn(conv(x)) + residual) as a new tensor in conv's memory format. Empty if the weight, BatchNorm's scale or shift,
// or their folded product is not finite: oneDNN would place infinities and NaNs differently from eager.
OptTensor onednn_conv(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed);

}  // namespace resnet_fused::cpu
