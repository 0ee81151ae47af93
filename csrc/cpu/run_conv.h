// act(bn(conv(x)) + residual) by the engine of the plan, or by the next one if that gives up.
#pragma once
#include <functional>

#include "cpu/engines.h"

namespace resnet_fused::cpu {

// Computes the residual of a convolution lazily, and again if the first engine gives up. `out` is the channels_last
// output, or null; the residual may be written there, because the convolution reads each value before it overwrites it.
using Residual = std::function<OptTensor(const Tensor* out)>;

inline OptTensor no_residual(const Tensor*) { return std::nullopt; }

Tensor run_conv(const Conv& conv, Purpose purpose, const Residual& residual, bool relu, bool keep_packed,
                bool internal);
// The same with a plan of conv.
Tensor run_conv(const Conv& conv, const Plan& plan, const Residual& residual, bool relu, bool keep_packed,
                bool internal);

}  // namespace resnet_fused::cpu
