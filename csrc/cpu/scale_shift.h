// BatchNorm as y * scale + shift, per channel, computed from its tensors on every call: nothing to go stale.
#pragma once
#include <vector>

#include "common/problem.h"

namespace resnet_fused::cpu {

// A per-channel tensor of any floating dtype and stride as a vector.
template <typename Acc>
std::vector<Acc> per_channel(const OptTensor& t, int64_t channels, Acc absent);

template <typename Acc>
struct ScaleShift {
  std::vector<Acc> scale, shift;  // [K]
  // False: eager adds the bias first, and has its infinities and NaNs elsewhere. An infinite scale makes NaN of -bias.
  bool bias_folds = true;
};

// scale = gamma / sqrt(var + eps), shift = beta + (bias - mean) * scale; 1 and bias without BatchNorm.
template <typename Acc>
ScaleShift<Acc> scale_shift(const BatchNorm& bn, const OptTensor& bias, int64_t channels);

// The same bias_folds, in what a convolution's outputs are computed in.
bool bias_folds(const Conv& conv);

extern template std::vector<float> per_channel(const OptTensor&, int64_t, float);
extern template std::vector<double> per_channel(const OptTensor&, int64_t, double);
extern template ScaleShift<float> scale_shift(const BatchNorm&, const OptTensor&, int64_t);
extern template ScaleShift<double> scale_shift(const BatchNorm&, const OptTensor&, int64_t);

}  // namespace resnet_fused::cpu
