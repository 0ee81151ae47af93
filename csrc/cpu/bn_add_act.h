// act(bn(x) + residual) and act(bn(x) + bn'(shortcut)), one pass: each element read once, written once.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

// out may be x itself. x, residual and out are dense, of one dtype and one memory format.
// bias is a convolution's, added before the BatchNorm.
void bn_add_act_into(const Tensor& out, const Tensor& x, const OptTensor& bias, const BatchNorm& bn,
                     const OptTensor& residual, bool relu, bool channels_last);

// act(bn(x) + shortcut_bn(shortcut)), the same way.
void bn_add_bn_act_into(const Tensor& out, const Tensor& x, const BatchNorm& bn, const Tensor& shortcut,
                        const BatchNorm& shortcut_bn, bool relu, bool channels_last);

// act(bn(x) + residual), in a new tensor of x's memory format.
Tensor normalise(const Tensor& x, const BatchNorm& bn, const OptTensor& residual, bool relu, bool internal);

}  // namespace resnet_fused::cpu
