// The loops of bn_kernels.h in AVX-512, for a storage type of 16 lanes a register. Everything here is static:
// files below avx512/ must not leave AVX-512 code in symbols that the linker could share with the rest of the library.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "cpu/bn_kernels.h"
#include "cpu/scalar.h"

namespace resnet_fused::cpu::avx512 {
namespace {

constexpr int64_t kWide = 16;  // lanes of a register

struct Fp32 {
  using Elem = float;
  static inline __m512 load(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
  static inline void store(float* p, __m512 v, __mmask16 m) { _mm512_mask_storeu_ps(p, m, v); }
};

#ifdef __AVX512BF16__
struct Bf16 {
  using Elem = BFloat16;
  static inline __m512 load(const BFloat16* p, __mmask16 m) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
  }
  static inline void store(BFloat16* p, __m512 v, __mmask16 m) {
    _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v));
  }
};
#endif

#define INLINE inline __attribute__((always_inline))

INLINE __mmask16 first_lanes(int64_t n) { return n >= kWide ? 0xffff : static_cast<__mmask16>((1u << n) - 1); }

template <typename A, Mask kMask>
INLINE __m512 masked(const Masked<typename A::Elem, float>& g, int64_t at, __m512 x, __m512 scale, __m512 shift,
                     __mmask16 m) {
  const __m512 v = A::load(g.grad + at, m);
  if (kMask == Mask::kNone) return v;
  const __m512 y = kMask == Mask::kOut ? A::load(g.out + at, m) : _mm512_fmadd_ps(x, scale, shift);
  // not (y <= 0): NaN lets the gradient through
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_NLE_UQ), v);
}

// visit(at, channel, lanes, per_channel) for every 16 elements of the block, front to back; per_channel(p) is what p
// holds for their channels.
template <typename Visit>
INLINE void for_each(Block block, const Visit& visit) {
  int64_t at = 0;
  if (block.planes) {
    for (int64_t k = 0; k < block.channels; ++k) {
      const auto per_channel = [k](const float* p) __attribute__((always_inline)) { return _mm512_set1_ps(p[k]); };
      for (int64_t i = 0; i < block.pixels; i += kWide)
        visit(at + i, first_lanes(block.pixels - i), per_channel);
      at += block.pixels;
    }
    return;
  }
  for (int64_t r = 0; r < block.pixels; ++r) {
    for (int64_t c = 0; c < block.channels; c += kWide) {
      const __mmask16 m = first_lanes(block.channels - c);
      visit(at + c, m, [c, m](const float* p) __attribute__((always_inline)) { return _mm512_maskz_loadu_ps(m, p + c); });
    }
    at += block.channels;
  }
}

enum class Other { kNone, kPlain, kScaled };

template <typename A, Other kOther>
void apply_sum(typename A::Elem* to, const Sum<typename A::Elem, float>& s, Block block) {
  // What is below 0 becomes 0, or with no ReLU what is below -Inf; NaN is below nothing.
  const __m512 zero = _mm512_setzero_ps(), floor = s.relu ? zero : _mm512_set1_ps(-__builtin_inff());
  for_each(block, [&](int64_t at, __mmask16 m, const auto& per_channel) __attribute__((always_inline)) {
    __m512 y = _mm512_fmadd_ps(A::load(s.x + at, m), per_channel(s.scale), per_channel(s.shift));
    if (kOther == Other::kPlain) y = _mm512_add_ps(y, A::load(s.other + at, m));
    if (kOther == Other::kScaled)
      y = _mm512_add_ps(
          y, _mm512_fmadd_ps(A::load(s.other + at, m), per_channel(s.other_scale), per_channel(s.other_shift)));
    y = _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask(y, floor, _CMP_LT_OQ), zero);
    A::store(to + at, y, m);
  });
}

template <typename A>
void apply(typename A::Elem* to, const Sum<typename A::Elem, float>& s, Block block) {
  if (!s.other) return apply_sum<A, Other::kNone>(to, s, block);
  if (!s.other_scale) return apply_sum<A, Other::kPlain>(to, s, block);
  return apply_sum<A, Other::kScaled>(to, s, block);
}

// What a reduction adds up: the center's distances and their squares
template <typename A>
struct Squares {
  const typename A::Elem* x;
  const float* center;

  struct Channels {  // what does not change from pixel to pixel
    __m512 center;
  };
  template <typename PerChannel>
  INLINE Channels channels(const PerChannel& per_channel) const {
    return {per_channel(center)};
  }
  INLINE void add(const Channels& k, int64_t at, __mmask16 m, __m512& sum, __m512& squares) const {
    const __m512 d = _mm512_maskz_sub_ps(m, A::load(x + at, m), k.center);
    sum = _mm512_add_ps(sum, d);
    squares = _mm512_fmadd_ps(d, d, squares);
  }
};

// The masked gradient, and its products with the mean's distances
template <typename A, Mask kMask>
struct Products {
  const Masked<typename A::Elem, float>& g;

  struct Channels {
    __m512 mean, scale, shift;
  };
  template <typename PerChannel>
  INLINE Channels channels(const PerChannel& per_channel) const {
    const __m512 mean = per_channel(g.mean);
    if (kMask != Mask::kRecompute) return {mean, mean, mean};
    return {mean, per_channel(g.scale), per_channel(g.shift)};
  }
  INLINE void add(const Channels& k, int64_t at, __mmask16 m, __m512& sum, __m512& products) const {
    const __m512 x = A::load(g.x + at, m), v = masked<A, kMask>(g, at, x, k.scale, k.shift, m);
    sum = _mm512_add_ps(sum, v);
    products = _mm512_fmadd_ps(v, _mm512_maskz_sub_ps(m, x, k.mean), products);
  }
};

INLINE __m512d low(__m512 v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
INLINE __m512d high(__m512 v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }

INLINE void add_doubles(double* to, __m512 v, __mmask16 m) {
  const __mmask8 first = static_cast<__mmask8>(m), second = static_cast<__mmask8>(m >> 8);
  _mm512_mask_storeu_pd(to, first, _mm512_add_pd(_mm512_maskz_loadu_pd(first, to), low(v)));
  _mm512_mask_storeu_pd(to + 8, second, _mm512_add_pd(_mm512_maskz_loadu_pd(second, to + 8), high(v)));
}

INLINE double total(const __m512 (&v)[4]) {
  const __m512 sum = _mm512_add_ps(_mm512_add_ps(v[0], v[1]), _mm512_add_ps(v[2], v[3]));
  return _mm512_reduce_add_pd(_mm512_add_pd(low(sum), high(sum)));
}

template <typename Q>
INLINE void sum_planes(const Q& q, Block block, double* first, double* second) {
  constexpr int64_t kPart = kPlaneRows * kPlaneLanes;
  for (int64_t k = 0; k < block.channels; ++k) {
    const auto channels = q.channels([k](const float* p) __attribute__((always_inline)) { return _mm512_set1_ps(p[k]); });
    for (int64_t i = 0; i < block.pixels; i += kPart) {
      int64_t at = k * block.pixels + i;
      int64_t left = block.pixels - i < kPart ? block.pixels - i : kPart;
      __m512 a[4], b[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) a[v] = b[v] = _mm512_setzero_ps();
      for (; left >= kPlaneLanes; left -= kPlaneLanes, at += kPlaneLanes)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) q.add(channels, at + v * kWide, 0xffff, a[v], b[v]);
      if (left > 0)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v)
          if (left > v * kWide) q.add(channels, at + v * kWide, first_lanes(left - v * kWide), a[v], b[v]);
      first[k] += total(a);
      second[k] += total(b);
    }
  }
}

// R rows of up to kSpan channels, added to sums in L1
template <int R, typename Q>
INLINE void sum_few_rows(const Q& q, int64_t at, int64_t step, int64_t c, int64_t width, float* a, float* b) {
  for (int64_t i = 0; i < width; i += kWide) {
    const __mmask16 m = first_lanes(width - i);
    const auto channels =
        q.channels([=](const float* p) __attribute__((always_inline)) { return _mm512_maskz_loadu_ps(m, p + c + i); });
    __m512 first = _mm512_load_ps(a + i), second = _mm512_load_ps(b + i);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) q.add(channels, at + r * step + i, m, first, second);
    _mm512_store_ps(a + i, first);
    _mm512_store_ps(b + i, second);
  }
}

template <typename Q>
INLINE void sum_rows(const Q& q, Block block, double* first, double* second) {
  constexpr int kFew = 4;
  alignas(64) float a[kSpan], b[kSpan];
  for (int64_t r = 0; r < block.pixels; r += kRows)
    for (int64_t c = 0; c < block.channels; c += kSpan) {
      const int64_t rows = block.pixels - r < kRows ? block.pixels - r : kRows;
      const int64_t width = block.channels - c < kSpan ? block.channels - c : kSpan;
      for (int64_t i = 0; i < width; i += kWide) {
        _mm512_store_ps(a + i, _mm512_setzero_ps());
        _mm512_store_ps(b + i, _mm512_setzero_ps());
      }
      int64_t i = 0;
      for (; i + kFew <= rows; i += kFew)
        sum_few_rows<kFew>(q, (r + i) * block.channels + c, block.channels, c, width, a, b);
      for (; i < rows; ++i) sum_few_rows<1>(q, (r + i) * block.channels + c, block.channels, c, width, a, b);
      for (i = 0; i < width; i += kWide) {
        add_doubles(first + c + i, _mm512_load_ps(a + i), first_lanes(width - i));
        add_doubles(second + c + i, _mm512_load_ps(b + i), first_lanes(width - i));
      }
    }
}

template <typename Q>
void sum(const Q& q, Block block, double* first, double* second) {
  if (block.planes) return sum_planes(q, block, first, second);
  sum_rows(q, block, first, second);
}

template <typename A>
void sum_squares(const typename A::Elem* x, const float* center, Block block, double* first, double* second) {
  sum(Squares<A>{x, center}, block, first, second);
}

template <typename A>
void sum_gradient(const Masked<typename A::Elem, float>& g, Block block, double* first, double* second) {
  if (g.mask == Mask::kOut) return sum(Products<A, Mask::kOut>{g}, block, first, second);
  if (g.mask == Mask::kRecompute) return sum(Products<A, Mask::kRecompute>{g}, block, first, second);
  sum(Products<A, Mask::kNone>{g}, block, first, second);
}

template <typename A, Mask kMask, bool kFrozen>
void gradient(typename A::Elem* to, const Masked<typename A::Elem, float>& g, const float* a, const float* b,
              const float* c, Block block) {
  for_each(block, [&](int64_t at, __mmask16 m, const auto& per_channel) __attribute__((always_inline)) {
    __m512 x = _mm512_setzero_ps(), scale = x, shift = x;
    if (!kFrozen || kMask == Mask::kRecompute) x = A::load(g.x + at, m);
    if (kMask == Mask::kRecompute) {
      scale = per_channel(g.scale);
      shift = per_channel(g.shift);
    }
    const __m512 v = masked<A, kMask>(g, at, x, scale, shift, m);
    if (kFrozen)
      A::store(to + at, _mm512_mul_ps(per_channel(a), v), m);
    else
      A::store(to + at,
               _mm512_fmadd_ps(per_channel(a), v,
                               _mm512_fmadd_ps(per_channel(b), _mm512_sub_ps(x, per_channel(g.mean)), per_channel(c))),
               m);
  });
}

template <typename A, bool kFrozen>
void gradient(typename A::Elem* to, const Masked<typename A::Elem, float>& g, const float* a, const float* b,
              const float* c, Block block) {
  if (g.mask == Mask::kOut) return gradient<A, Mask::kOut, kFrozen>(to, g, a, b, c, block);
  if (g.mask == Mask::kRecompute) return gradient<A, Mask::kRecompute, kFrozen>(to, g, a, b, c, block);
  gradient<A, Mask::kNone, kFrozen>(to, g, a, b, c, block);
}

template <typename A>
void apply_gradient(typename A::Elem* to, const Masked<typename A::Elem, float>& g, const float* a, const float* b,
                    const float* c, Block block) {
  if (b) return gradient<A, false>(to, g, a, b, c, block);
  gradient<A, true>(to, g, a, b, c, block);
}

template <typename A>
void center(const typename A::Elem* const* rows, int64_t count, int64_t channels, float* to) {
  const __m512 share = _mm512_set1_ps(1.0f / static_cast<float>(count));
  for (int64_t c = 0; c < channels; c += kWide) {
    const __mmask16 m = first_lanes(channels - c);
    const __m512 x = A::load(rows[0] + c, m);
    __m512 sum = _mm512_setzero_ps(), spread = sum;
    for (int64_t i = 1; i < count; ++i) {
      const __m512 d = _mm512_sub_ps(A::load(rows[i] + c, m), x);
      sum = _mm512_add_ps(sum, d);
      spread = _mm512_max_ps(spread, _mm512_abs_ps(d));
    }
    const __m512 coarse = _mm512_mul_ps(spread, _mm512_set1_ps(round_at<float>));
    const __m512 mean = _mm512_sub_ps(_mm512_add_ps(_mm512_fmadd_ps(sum, share, x), coarse), coarse);
    // an Inf among the samples is no place to measure from
    const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_sub_ps(mean, mean), _mm512_setzero_ps(), _CMP_EQ_OQ);
    _mm512_mask_storeu_ps(to + c, m, _mm512_maskz_mov_ps(finite, mean));
  }
}

#undef INLINE

template <typename A>
constexpr BnKernels<typename A::Elem, float> kernels_of() {
  return {apply<A>, center<A>, sum_squares<A>, sum_gradient<A>, apply_gradient<A>};
}

}  // namespace
}  // namespace resnet_fused::cpu::avx512
