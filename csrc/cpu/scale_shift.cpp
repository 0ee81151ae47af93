#include "cpu/scale_shift.h"

#include <cmath>

#include "cpu/dispatch.h"

namespace resnet_fused::cpu {

namespace {

// A per-channel tensor of any floating dtype and stride as a vector.
template <typename Acc>
std::vector<Acc> values(const OptTensor& t, int64_t channels, Acc absent) {
  std::vector<Acc> v(channels, absent);
  if (t)
    dispatch(t->scalar_type(), [&](auto zero) {
      using T = decltype(zero);
      const T* p = data<T>(*t);
      const int64_t stride = t->stride(0);
      for (int64_t k = 0; k < channels; ++k) v[k] = static_cast<Acc>(load(p[k * stride]));
    });
  return v;
}

}  // namespace

template <typename Acc>
ScaleShift<Acc> scale_shift(const BatchNorm& bn, const OptTensor& bias, int64_t channels) {
  ScaleShift<Acc> out{std::vector<Acc>(channels, Acc(1)), values<Acc>(bias, channels, Acc(0))};
  if (!bn.present()) return out;
  const auto gamma = values<Acc>(bn.gamma, channels, Acc(1)), beta = values<Acc>(bn.beta, channels, Acc(0));
  const auto mean = values<Acc>(bn.mean, channels, Acc(0)), var = values<Acc>(bn.var, channels, Acc(1));
  for (int64_t k = 0; k < channels; ++k) {
    const Acc scale = gamma[k] * (Acc(1) / std::sqrt(var[k] + static_cast<Acc>(bn.eps)));
    out.shift[k] = beta[k] + (out.shift[k] - mean[k]) * scale;
    out.scale[k] = scale;
  }
  return out;
}

template ScaleShift<float> scale_shift(const BatchNorm&, const OptTensor&, int64_t);
template ScaleShift<double> scale_shift(const BatchNorm&, const OptTensor&, int64_t);

}  // namespace resnet_fused::cpu
