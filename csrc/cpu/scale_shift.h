// BatchNorm as y * scale + shift per channel, computed from its tensors on every call, so it is never stale.
#pragma once
#include <vector>

#include "common/problem.h"

namespace resnet_fused::cpu {

// Copies a per-channel tensor of any floating dtype and stride to a vector.
template <typename Acc>
std::vector<Acc> per_channel(const OptTensor& t, int64_t channels, Acc absent);

template <typename Acc>
struct ScaleShift {
  std::vector<Acc> scale, shift;  // [K]
  // False: the bias must be added before the BatchNorm to get infinities and NaNs where eager has them. With an
  // infinite scale, for example, a convolution output of -bias would become NaN.
  bool bias_folds = true;
};

// scale = gamma / sqrt(var + eps), shift = beta + (bias - mean) * scale; without BatchNorm, 1 and bias.
template <typename Acc>
ScaleShift<Acc> scale_shift(const BatchNorm& bn, const OptTensor& bias, int64_t channels);

// The same bias_folds, in what a convolution's outputs are computed in.
bool bias_folds(const Conv& conv);

extern template std::vector<float> per_channel(const OptTensor&, int64_t, float);
extern template std::vector<double> per_channel(const OptTensor&, int64_t, double);
extern template ScaleShift<float> scale_shift(const BatchNorm&, const OptTensor&, int64_t);
extern template ScaleShift<double> scale_shift(const BatchNorm&, const OptTensor&, int64_t);

}  // namespace resnet_fused::cpu
