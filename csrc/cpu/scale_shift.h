// BatchNorm as y * scale + shift, per channel, computed from its tensors on every call: nothing to go stale.
#pragma once
#include <vector>

#include "common/problem.h"

namespace resnet_fused::cpu {

template <typename Acc>
struct ScaleShift {
  std::vector<Acc> scale, shift;  // [K]
};

// scale = gamma / sqrt(var + eps), shift = beta + (bias - mean) * scale; 1 and bias without BatchNorm.
template <typename Acc>
ScaleShift<Acc> scale_shift(const BatchNorm& bn, const OptTensor& bias, int64_t channels);

extern template ScaleShift<float> scale_shift(const BatchNorm&, const OptTensor&, int64_t);
extern template ScaleShift<double> scale_shift(const BatchNorm&, const OptTensor&, int64_t);

}  // namespace resnet_fused::cpu
