// act(x * scale + shift + residual), one pass: each element read once, written once.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

// out may be x itself. x, residual and out are dense, of one dtype and one memory format.
// bias is a convolution's, added before the BatchNorm.
void bn_add_act_into(const Tensor& out, const Tensor& x, const OptTensor& bias, const BatchNorm& bn,
                     const OptTensor& residual, bool relu, bool channels_last);

}  // namespace resnet_fused::cpu
