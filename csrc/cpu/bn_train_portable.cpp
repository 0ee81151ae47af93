// The loops of bn_train_kernels.h as plain C++, which the compiler vectorises for each instruction set.
#include <algorithm>
#include <cmath>

#include "cpu/bn_train_kernels.h"
#include "cpu/isa.h"
#include "cpu/scalar.h"

namespace resnet_fused::cpu {

namespace {

#define INLINE inline __attribute__((always_inline))

constexpr int64_t kSpan = 64;  // channels whose sums are in registers or L1 at a time

template <Mask kMask, typename T, typename Acc>
INLINE Acc masked(const Masked<T, Acc>& g, int64_t at, int64_t channel) {
  const Acc v = load(g.grad[at]);
  if constexpr (kMask == Mask::kOut) return load(g.out[at]) <= Acc(0) ? Acc(0) : v;
  if constexpr (kMask == Mask::kRecompute)
    return load(g.x[at]) * g.scale[channel] + g.shift[channel] <= Acc(0) ? Acc(0) : v;
  return v;
}

// visit(at, channel, lane, first, second) adds element `at` to the two sums of its lane. kPlane: one channel, whose
// elements are dealt to all lanes.
template <bool kPlane, typename Acc, typename Visit>
INLINE void sum_tile(const Visit& visit, int64_t at, int64_t step, int64_t rows, int64_t channel, int64_t width,
                     double* first, double* second) {
  Acc a[kSpan] = {}, b[kSpan] = {};
  if (width == kSpan)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < kSpan; ++i) visit(at + r * step + i, kPlane ? 0 : channel + i, a[i], b[i]);
  else
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < width; ++i) visit(at + r * step + i, kPlane ? 0 : channel + i, a[i], b[i]);
  if constexpr (kPlane) {
    double lanes[2][kSpan];
    for (int64_t i = 0; i < kSpan; ++i) lanes[0][i] = a[i], lanes[1][i] = b[i];
    for (int64_t half = kSpan / 2; half; half /= 2)
      for (int64_t i = 0; i < half; ++i) lanes[0][i] += lanes[0][i + half], lanes[1][i] += lanes[1][i + half];
    *first += lanes[0][0];
    *second += lanes[1][0];
  } else {
    for (int64_t i = 0; i < width; ++i) first[channel + i] += a[i], second[channel + i] += b[i];
  }
}

template <typename Acc, typename Visit>
INLINE void sum(const Visit& visit, int64_t pixels, int64_t channels, double* first, double* second) {
  if (channels == 1) {
    const int64_t full = pixels / kSpan;
    for (int64_t r = 0; r < full; r += kRows)
      sum_tile<true, Acc>(visit, r * kSpan, kSpan, std::min(kRows, full - r), 0, kSpan, first, second);
    if (full * kSpan < pixels)
      sum_tile<true, Acc>(visit, full * kSpan, kSpan, 1, 0, pixels - full * kSpan, first, second);
    return;
  }
  for (int64_t r = 0; r < pixels; r += kRows)
    for (int64_t c = 0; c < channels; c += kSpan)
      sum_tile<false, Acc>(visit, r * channels + c, channels, std::min(kRows, pixels - r), c,
                           std::min(kSpan, channels - c), first, second);
}

template <typename T, typename Acc>
INLINE void center_body(const T* const* rows, int64_t count, int64_t channels, Acc* center) {
  const Acc share = Acc(1) / static_cast<Acc>(count);
  for (int64_t c = 0; c < channels; ++c) {
    const Acc x = load(rows[0][c]);
    Acc sum = 0, spread = 0;
    for (int64_t i = 1; i < count; ++i) {
      const Acc d = load(rows[i][c]) - x;
      sum += d;
      spread = std::max(spread, std::abs(d));
    }
    const Acc coarse = spread * round_at<Acc>, mean = (x + share * sum + coarse) - coarse;
    center[c] = mean - mean == Acc(0) ? mean : Acc(0);  // an Inf among the samples is no place to measure from
  }
}

template <typename T, typename Acc>
INLINE void sum_squares_body(const T* x, const Acc* center, int64_t pixels, int64_t channels, double* first,
                             double* second) {
  const auto visit = [=](int64_t at, int64_t channel, Acc& a, Acc& b) __attribute__((always_inline)) {
    const Acc d = load(x[at]) - center[channel];
    a += d;
    b += d * d;
  };
  sum<Acc>(visit, pixels, channels, first, second);
}

template <Mask kMask, typename T, typename Acc>
INLINE void sum_gradient_body(const Masked<T, Acc>& g, const Acc* mean, int64_t pixels, int64_t channels, double* first,
                              double* second) {
  const auto visit = [=](int64_t at, int64_t channel, Acc& a, Acc& b) __attribute__((always_inline)) {
    const Acc v = masked<kMask>(g, at, channel);
    a += v;
    b += v * (load(g.x[at]) - mean[channel]);
  };
  sum<Acc>(visit, pixels, channels, first, second);
}

template <Mask kMask, typename T, typename Acc>
INLINE void apply_body(T* to, const Masked<T, Acc>& g, const Acc* mean, const Acc* a, const Acc* b, const Acc* c,
                       int64_t pixels, int64_t channels) {
  const auto value = [=](int64_t at, int64_t k) __attribute__((always_inline)) {
    return a[k] * masked<kMask>(g, at, k) + (b[k] * (load(g.x[at]) - mean[k]) + c[k]);
  };
  const auto frozen = [=](int64_t at, int64_t k)
                          __attribute__((always_inline)) { return a[k] * masked<kMask>(g, at, k); };
  if (channels == 1) {
    if (b)
      for (int64_t i = 0; i < pixels; ++i) store(to + i, value(i, 0));
    else
      for (int64_t i = 0; i < pixels; ++i) store(to + i, frozen(i, 0));
    return;
  }
  for (int64_t at = 0; at < pixels * channels; at += channels) {
    if (b)
      for (int64_t k = 0; k < channels; ++k) store(to + at + k, value(at + k, k));
    else
      for (int64_t k = 0; k < channels; ++k) store(to + at + k, frozen(at + k, k));
  }
}

// target_clones wants plain functions: one set a storage type.
#define DEFINE_KERNELS(T, Acc)                                                                                        \
  FOR_EVERY_ISA void center(const T* const* rows, int64_t count, int64_t channels, Acc* to) {                         \
    center_body<T, Acc>(rows, count, channels, to);                                                                   \
  }                                                                                                                   \
                                                                                                                      \
  FOR_EVERY_ISA void sum_squares(const T* x, const Acc* center, int64_t pixels, int64_t channels, double* first,      \
                                 double* second) {                                                                    \
    sum_squares_body<T, Acc>(x, center, pixels, channels, first, second);                                             \
  }                                                                                                                   \
  FOR_EVERY_ISA void sum_gradient(const Masked<T, Acc>& g, const Acc* mean, int64_t pixels, int64_t channels,         \
                                  double* first, double* second) {                                                    \
    if (g.mask == Mask::kOut)                                                                                         \
      sum_gradient_body<Mask::kOut>(g, mean, pixels, channels, first, second);                                        \
    else if (g.mask == Mask::kRecompute)                                                                              \
      sum_gradient_body<Mask::kRecompute>(g, mean, pixels, channels, first, second);                                  \
    else                                                                                                              \
      sum_gradient_body<Mask::kNone>(g, mean, pixels, channels, first, second);                                       \
  }                                                                                                                   \
  FOR_EVERY_ISA void apply(T* to, const Masked<T, Acc>& g, const Acc* mean, const Acc* a, const Acc* b, const Acc* c, \
                           int64_t pixels, int64_t channels) {                                                        \
    if (g.mask == Mask::kOut)                                                                                         \
      apply_body<Mask::kOut>(to, g, mean, a, b, c, pixels, channels);                                                 \
    else if (g.mask == Mask::kRecompute)                                                                              \
      apply_body<Mask::kRecompute>(to, g, mean, a, b, c, pixels, channels);                                           \
    else                                                                                                              \
      apply_body<Mask::kNone>(to, g, mean, a, b, c, pixels, channels);                                                \
  }
DEFINE_KERNELS(float, float)
DEFINE_KERNELS(double, double)
DEFINE_KERNELS(_Float16, float)
DEFINE_KERNELS(BFloat16, float)
#undef DEFINE_KERNELS
#undef INLINE

}  // namespace

template <typename T, typename Acc>
const TrainKernels<T, Acc>& portable_train_kernels() {
  static constexpr TrainKernels<T, Acc> kernels{center, sum_squares, sum_gradient, apply};
  return kernels;
}

template const TrainKernels<float, float>& portable_train_kernels();
template const TrainKernels<double, double>& portable_train_kernels();
template const TrainKernels<_Float16, float>& portable_train_kernels();
template const TrainKernels<BFloat16, float>& portable_train_kernels();

}  // namespace resnet_fused::cpu
