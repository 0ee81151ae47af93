// Portable loops for bn_kernels.h, vectorised by the compiler for each instruction set, and the choice of loops.
#include "cpu/bn_kernels.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/plan.h"
#include "cpu/scalar.h"

namespace resnet_fused::cpu {

namespace {

#define INLINE inline __attribute__((always_inline))

// NaN passes through, as through torch.relu: NaN < 0 is false.
template <typename Acc>
INLINE Acc act(Acc v, bool relu) {
  return relu && v < Acc(0) ? Acc(0) : v;
}

// Writes value(at, channel) to every element.
template <typename T, typename Value>
INLINE void fill(T* to, Block block, const Value& value) {
  if (block.planes)
    for (int64_t k = 0; k < block.channels; ++k)
      for (int64_t i = 0; i < block.pixels; ++i) store(to + k * block.pixels + i, value(k * block.pixels + i, k));
  else
    for (int64_t p = 0; p < block.pixels; ++p)
      for (int64_t k = 0; k < block.channels; ++k) store(to + p * block.channels + k, value(p * block.channels + k, k));
}

template <typename T, typename Acc>
INLINE void apply_body(T* to, const Sum<T, Acc>& s, Block block) {
  const T *const x = s.x, *const other = s.other;
  const Acc *const scale = s.scale, *const shift = s.shift;
  const Acc *const other_scale = s.other_scale, *const other_shift = s.other_shift;
  const bool relu = s.relu;
  if (!other)
    fill(to, block, [=](int64_t at, int64_t k) { return act(load(x[at]) * scale[k] + shift[k], relu); });
  else if (!other_scale)
    fill(to, block,
         [=](int64_t at, int64_t k) { return act(load(x[at]) * scale[k] + shift[k] + load(other[at]), relu); });
  else
    fill(to, block, [=](int64_t at, int64_t k) {
      const Acc added = load(other[at]) * other_scale[k] + other_shift[k];
      return act(load(x[at]) * scale[k] + shift[k] + added, relu);
    });
}

template <Mask kMask, typename T, typename Acc>
INLINE Acc masked(const Masked<T, Acc>& g, int64_t at, int64_t channel) {
  const Acc v = load(g.grad[at]);
  if constexpr (kMask == Mask::kOut || kMask == Mask::kOutStored) return load(g.out[at]) <= Acc(0) ? Acc(0) : v;
  if constexpr (kMask == Mask::kRecompute)
    return load(g.x[at]) * g.scale[channel] + g.shift[channel] <= static_cast<Acc>(vanishes<T>) ? Acc(0) : v;
  return v;
}

// add(at, channel, first, second) adds element `at` to the two sums.
template <typename Acc, typename Add>
INLINE void sum_rows(const Add& add, Block block, double* first, double* second) {
  for (int64_t r = 0; r < block.pixels; r += kRows)
    for (int64_t c = 0; c < block.channels; c += kSpan) {
      const int64_t rows = std::min(kRows, block.pixels - r), width = std::min(kSpan, block.channels - c);
      Acc a[kSpan], b[kSpan];
      std::fill(a, a + width, Acc(0));
      std::fill(b, b + width, Acc(0));
      for (int64_t i = r; i < r + rows; ++i)
        for (int64_t k = 0; k < width; ++k) add(i * block.channels + c + k, c + k, a[k], b[k]);
      for (int64_t k = 0; k < width; ++k) first[c + k] += a[k], second[c + k] += b[k];
    }
}

template <typename Acc>
INLINE double total(const Acc* lanes) {
  double sum[kPlaneLanes];
  for (int64_t i = 0; i < kPlaneLanes; ++i) sum[i] = lanes[i];
  for (int64_t half = kPlaneLanes / 2; half; half /= 2)
    for (int64_t i = 0; i < half; ++i) sum[i] += sum[i + half];
  return sum[0];
}

template <typename Acc, typename Add>
INLINE void sum_planes(const Add& add, Block block, double* first, double* second) {
  constexpr int64_t kPart = kPlaneRows * kPlaneLanes;
  for (int64_t k = 0; k < block.channels; ++k)
    for (int64_t begin = 0; begin < block.pixels; begin += kPart) {
      const int64_t start = k * block.pixels + begin, end = start + std::min(kPart, block.pixels - begin);
      Acc a[kPlaneLanes] = {}, b[kPlaneLanes] = {};
      int64_t at = start;
      for (; at + kPlaneLanes <= end; at += kPlaneLanes)
        for (int64_t i = 0; i < kPlaneLanes; ++i) add(at + i, k, a[i], b[i]);
      for (int64_t i = 0; i < end - at; ++i) add(at + i, k, a[i], b[i]);
      first[k] += total(a);
      second[k] += total(b);
    }
}

template <typename Acc, typename Add>
INLINE void sum(const Add& add, Block block, double* first, double* second) {
  if (block.planes)
    sum_planes<Acc>(add, block, first, second);
  else
    sum_rows<Acc>(add, block, first, second);
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
    center[c] = mean - mean == Acc(0) ? mean : Acc(0);  // Inf cannot be a center
  }
}

template <typename T, typename Acc>
INLINE void sum_squares_body(const T* x, const Acc* center, Block block, double* first, double* second) {
  const auto add = [=](int64_t at, int64_t channel, Acc& a, Acc& b) __attribute__((always_inline)) {
    const Acc d = load(x[at]) - center[channel];
    a += d;
    b += d * d;
  };
  sum<Acc>(add, block, first, second);
}

template <Mask kMask, typename T, typename Acc>
INLINE void sum_gradient_body(const Masked<T, Acc>& g, Block block, double* first, double* second) {
  const auto add = [g](int64_t at, int64_t channel, Acc& a, Acc& b) __attribute__((always_inline)) {
    const Acc v = masked<kMask>(g, at, channel);
    if constexpr (kMask == Mask::kOutStored) store(g.masked_grad + at, v);
    a += v;
    b += v * (load(g.x[at]) - g.mean[channel]);
  };
  sum<Acc>(add, block, first, second);
}

template <Mask kMask, typename T, typename Acc>
INLINE void apply_gradient_body(T* to, const Masked<T, Acc>& g, const Acc* a, const Acc* b, const Acc* c, Block block) {
  if (b)
    fill(to, block, [=](int64_t at, int64_t k) __attribute__((always_inline)) {
      return a[k] * (masked<kMask>(g, at, k) - c[k] - b[k] * (load(g.x[at]) - g.mean[k]));
    });
  else
    fill(to, block,
         [=](int64_t at, int64_t k) __attribute__((always_inline)) { return a[k] * masked<kMask>(g, at, k); });
}

// target_clones does not work on templates: one set of functions per storage type.
#define DEFINE_KERNELS(T, Acc)                                                                                \
  FOR_EVERY_ISA void apply(T* to, const Sum<T, Acc>& s, Block block) { apply_body(to, s, block); }            \
  FOR_EVERY_ISA void center(const T* const* rows, int64_t count, int64_t channels, Acc* to) {                 \
    center_body(rows, count, channels, to);                                                                   \
  }                                                                                                           \
  FOR_EVERY_ISA void sum_squares(const T* x, const Acc* center, Block block, double* first, double* second) { \
    sum_squares_body(x, center, block, first, second);                                                        \
  }                                                                                                           \
  FOR_EVERY_ISA void sum_gradient(const Masked<T, Acc>& g, Block block, double* first, double* second) {      \
    if (g.mask == Mask::kOut)                                                                                 \
      sum_gradient_body<Mask::kOut>(g, block, first, second);                                                 \
    else if (g.mask == Mask::kOutStored)                                                                      \
      sum_gradient_body<Mask::kOutStored>(g, block, first, second);                                           \
    else if (g.mask == Mask::kRecompute)                                                                      \
      sum_gradient_body<Mask::kRecompute>(g, block, first, second);                                           \
    else                                                                                                      \
      sum_gradient_body<Mask::kNone>(g, block, first, second);                                                \
  }                                                                                                           \
  FOR_EVERY_ISA void apply_gradient(T* to, const Masked<T, Acc>& g, const Acc* a, const Acc* b, const Acc* c, \
                                    Block block) {                                                            \
    if (g.mask == Mask::kOut)                                                                                 \
      apply_gradient_body<Mask::kOut>(to, g, a, b, c, block);                                                 \
    else if (g.mask == Mask::kRecompute)                                                                      \
      apply_gradient_body<Mask::kRecompute>(to, g, a, b, c, block);                                           \
    else                                                                                                      \
      apply_gradient_body<Mask::kNone>(to, g, a, b, c, block);                                                \
  }
DEFINE_KERNELS(float, float)
DEFINE_KERNELS(double, double)
DEFINE_KERNELS(_Float16, float)
DEFINE_KERNELS(BFloat16, float)
#undef DEFINE_KERNELS
#undef INLINE

}  // namespace

template <typename T, typename Acc>
const BnKernels<T, Acc>& bn_kernels() {
#if defined(__x86_64__)
  // Tests disable the AVX-512 engines through RESNET_FUSED_CPU_ENGINE; that disables these loops too.
  const CpuFeatures cpu = cpu_features();
  if (own_kernels_allowed()) {
    if constexpr (std::is_same_v<T, float>)
      if (cpu.avx512) return avx512::bn_kernels_fp32;
    if constexpr (std::is_same_v<T, BFloat16>)
      if (cpu.avx512_bf16) return avx512::bn_kernels_bf16;
  }
#endif
  static const BnKernels<T, Acc> portable{apply, center, sum_squares, sum_gradient, apply_gradient};
  return portable;
}

template const BnKernels<float, float>& bn_kernels();
template const BnKernels<double, double>& bn_kernels();
template const BnKernels<_Float16, float>& bn_kernels();
template const BnKernels<BFloat16, float>& bn_kernels();

}  // namespace resnet_fused::cpu
