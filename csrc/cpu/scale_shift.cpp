#include "cpu/scale_shift.h"

#include <cmath>

#include "cpu/dispatch.h"

namespace resnet_fused::cpu {

template <typename Acc>
std::vector<Acc> per_channel(const OptTensor& t, int64_t channels, Acc absent) {
  std::vector<Acc> v(channels, absent);
  if (t)
    dispatch(scalar_type_of(*t), [&](auto zero) {
      using T = decltype(zero);
      const T* p = data<T>(*t);
      const int64_t stride = t->stride(0);
      if (stride == 1)  // a loop of its own, to be vectorised
        for (int64_t k = 0; k < channels; ++k) v[k] = static_cast<Acc>(load(p[k]));
      else
        for (int64_t k = 0; k < channels; ++k) v[k] = static_cast<Acc>(load(p[k * stride]));
    });
  return v;
}

template <typename Acc>
ScaleShift<Acc> scale_shift(const BatchNorm& bn, const OptTensor& bias, int64_t channels) {
  ScaleShift<Acc> out{std::vector<Acc>(channels, Acc(1)), per_channel<Acc>(bias, channels, Acc(0))};
  if (!bn.present()) return out;
  const auto gamma = per_channel<Acc>(bn.gamma, channels, Acc(1)), beta = per_channel<Acc>(bn.beta, channels, Acc(0));
  const auto mean = per_channel<Acc>(bn.mean, channels, Acc(0)), var = per_channel<Acc>(bn.var, channels, Acc(1));
  for (int64_t k = 0; k < channels; ++k) {
    const Acc scale = gamma[k] * (Acc(1) / std::sqrt(var[k] + static_cast<Acc>(bn.eps)));
    out.shift[k] = beta[k] + (out.shift[k] - mean[k]) * scale;
    out.scale[k] = scale;
  }
  for (int64_t k = 0; bias && k < channels; ++k) {
    const Acc scale = out.scale[k];
    if (!(std::isfinite(scale) && std::isfinite(out.shift[k]) && std::isfinite(beta[k] - mean[k] * scale)))
      out.bias_folds = false;
  }
  return out;
}

bool bias_folds(const Conv& conv) {
  if (!conv.bias || !conv.bn.present()) return true;
  return scalar_type_of(conv.x) == ScalarType::Double ? scale_shift<double>(conv.bn, conv.bias, conv.k).bias_folds
                                                      : scale_shift<float>(conv.bn, conv.bias, conv.k).bias_folds;
}

template std::vector<float> per_channel(const OptTensor&, int64_t, float);
template std::vector<double> per_channel(const OptTensor&, int64_t, double);
template ScaleShift<float> scale_shift(const BatchNorm&, const OptTensor&, int64_t);
template ScaleShift<double> scale_shift(const BatchNorm&, const OptTensor&, int64_t);

}  // namespace resnet_fused::cpu
