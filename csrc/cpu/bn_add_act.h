// act(bn(x) + residual) and act(bn(x) + bn'(shortcut)) in one pass: one read and one write per element.
#pragma once
#include "common/problem.h"

namespace resnet_fused::cpu {

// out may alias x. x, residual and out are dense and have the same dtype and memory format. bias is the convolution
// bias, added before the BatchNorm.
void bn_add_act_into(const Tensor& out, const Tensor& x, const OptTensor& bias, const BatchNorm& bn,
                     const OptTensor& residual, bool relu, bool channels_last);

// act(bn(x) + shortcut_bn(shortcut)), under the same contract.
void bn_add_bn_act_into(const Tensor& out, const Tensor& x, const BatchNorm& bn, const Tensor& shortcut,
                        const BatchNorm& shortcut_bn, bool relu, bool channels_last);

// act(bn(x) + residual) as a new tensor in x's memory format.
Tensor normalise(const Tensor& x, const BatchNorm& bn, const OptTensor& residual, bool relu, bool internal);

}  // namespace resnet_fused::cpu
