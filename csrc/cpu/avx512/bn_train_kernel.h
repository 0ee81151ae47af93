// The loops of bn_train_kernels.h in AVX-512, for a storage type of 16 lanes a register. Everything here is static:
// files below avx512/ must not leave AVX-512 code in symbols that the linker could share with the rest of the library.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "cpu/bn_train_kernels.h"
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

// A vector of channels c to c + 15; kPlane: one channel for all lanes.
template <bool kPlane>
INLINE __m512 channels_at(const float* p, int64_t c, __mmask16 m) {
  return kPlane ? _mm512_set1_ps(*p) : _mm512_maskz_loadu_ps(m, p + c);
}

template <typename A, Mask kMask>
INLINE __m512 masked(const Masked<typename A::Elem, float>& g, int64_t at, __m512 x, __m512 scale, __m512 shift,
                     __mmask16 m) {
  const __m512 v = A::load(g.grad + at, m);
  if (kMask == Mask::kNone) return v;
  const __m512 y = kMask == Mask::kOut ? A::load(g.out + at, m) : _mm512_fmadd_ps(x, scale, shift);
  // not (y <= 0): NaN lets the gradient through
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_NLE_UQ), v);
}

// What a reduction adds up: the center's distances and their squares
template <typename A>
struct Squares {
  const typename A::Elem* x;
  const float* center;

  template <bool kPlane>
  struct Channels {  // what does not change from pixel to pixel
    __m512 center;
    INLINE void load(const Squares& q, int64_t c, __mmask16 m) { center = channels_at<kPlane>(q.center, c, m); }
  };
  template <typename C>
  INLINE void add(const C& k, int64_t at, __mmask16 m, __m512& sum, __m512& squares) const {
    const __m512 d = _mm512_maskz_sub_ps(m, A::load(x + at, m), k.center);
    sum = _mm512_add_ps(sum, d);
    squares = _mm512_fmadd_ps(d, d, squares);
  }
};

// The masked gradient, and its products with the mean's distances
template <typename A, Mask kMask>
struct Products {
  const Masked<typename A::Elem, float>& g;
  const float* mean;

  template <bool kPlane>
  struct Channels {
    __m512 mean, scale, shift;
    INLINE void load(const Products& q, int64_t c, __mmask16 m) {
      mean = channels_at<kPlane>(q.mean, c, m);
      scale = shift = mean;
      if (kMask == Mask::kRecompute) {
        scale = channels_at<kPlane>(q.g.scale, c, m);
        shift = channels_at<kPlane>(q.g.shift, c, m);
      }
    }
  };
  template <typename C>
  INLINE void add(const C& k, int64_t at, __mmask16 m, __m512& sum, __m512& products) const {
    const __m512 x = A::load(g.x + at, m), v = masked<A, kMask>(g, at, x, k.scale, k.shift, m);
    sum = _mm512_add_ps(sum, v);
    products = _mm512_fmadd_ps(v, _mm512_maskz_sub_ps(m, x, k.mean), products);
  }
};

INLINE void add_doubles(double* to, __m512 v, __mmask16 m) {
  const __mmask8 low = static_cast<__mmask8>(m), high = static_cast<__mmask8>(m >> 8);
  const __m512d a = _mm512_cvtps_pd(_mm512_castps512_ps256(v));
  const __m512d b = _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1));
  _mm512_mask_storeu_pd(to, low, _mm512_add_pd(_mm512_maskz_loadu_pd(low, to), a));
  _mm512_mask_storeu_pd(to + 8, high, _mm512_add_pd(_mm512_maskz_loadu_pd(high, to + 8), b));
}

// The lanes of V registers, in a fixed order
template <int V>
INLINE double total(const __m512 (&v)[V]) {
  __m512d sum = _mm512_setzero_pd();
#pragma GCC unroll 4
  for (int i = 0; i < V; ++i)
    sum = _mm512_add_pd(sum, _mm512_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(v[i])),
                                           _mm512_cvtps_pd(_mm512_extractf32x8_ps(v[i], 1))));
  return _mm512_reduce_add_pd(sum);
}

// V registers of channels over `rows` pixels. m: lanes of the last register
template <bool kPlane, int V, typename Q>
INLINE void sum_tile(const Q& q, int64_t at, int64_t step, int64_t rows, int64_t c, __mmask16 m, double* first,
                     double* second) {
  typename Q::template Channels<kPlane> k[V];
  __m512 a[V], b[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    k[v].load(q, c + v * kWide, v == V - 1 ? m : 0xffff);
    a[v] = b[v] = _mm512_setzero_ps();
  }
  for (int64_t r = 0; r < rows; ++r, at += step)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) q.add(k[v], at + v * kWide, v == V - 1 ? m : 0xffff, a[v], b[v]);
  if (kPlane) {
    *first += total(a);
    *second += total(b);
    return;
  }
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    add_doubles(first + c + v * kWide, a[v], v == V - 1 ? m : 0xffff);
    add_doubles(second + c + v * kWide, b[v], v == V - 1 ? m : 0xffff);
  }
}

template <typename Q>
INLINE void sum(const Q& q, int64_t pixels, int64_t channels, double* first, double* second) {
  constexpr int64_t kFour = 4 * kWide;
  if (channels == 1) {
    int64_t at = 0;
    for (int64_t rows; (rows = (pixels - at) / kFour) > 0; at += rows * kFour)
      sum_tile<true, 4>(q, at, kFour, rows = rows < kRows ? rows : kRows, 0, 0xffff, first, second);
    if (at < pixels) {
      const int64_t full = (pixels - at) / kWide;
      if (full) sum_tile<true, 1>(q, at, kWide, full, 0, 0xffff, first, second);
      at += full * kWide;
      if (at < pixels) sum_tile<true, 1>(q, at, kWide, 1, 0, first_lanes(pixels - at), first, second);
    }
    return;
  }
  for (int64_t r = 0; r < pixels; r += kRows) {
    const int64_t rows = pixels - r < kRows ? pixels - r : kRows, at = r * channels;
    int64_t c = 0;
    for (; c + kFour <= channels; c += kFour) sum_tile<false, 4>(q, at + c, channels, rows, c, 0xffff, first, second);
    for (; c < channels; c += kWide)
      sum_tile<false, 1>(q, at + c, channels, rows, c, first_lanes(channels - c), first, second);
  }
}

// a * g + b * (x - mean) + c for `count` elements of one pixel, or of one channel
template <typename A, Mask kMask, bool kPlane, bool kFrozen>
INLINE void apply_row(typename A::Elem* to, const Masked<typename A::Elem, float>& g, int64_t at, const float* mean,
                      const float* a, const float* b, const float* c, int64_t count) {
  for (int64_t i = 0; i < count; i += kWide) {
    const __mmask16 m = first_lanes(count - i);
    const auto per_channel = [&](const float* p)
                                 __attribute__((always_inline)) { return channels_at<kPlane>(p, i, m); };
    __m512 x = _mm512_setzero_ps(), scale = x, shift = x;
    if (!kFrozen || kMask == Mask::kRecompute) x = A::load(g.x + at + i, m);
    if (kMask == Mask::kRecompute) {
      scale = per_channel(g.scale);
      shift = per_channel(g.shift);
    }
    const __m512 v = masked<A, kMask>(g, at + i, x, scale, shift, m);
    __m512 y = _mm512_mul_ps(per_channel(a), v);
    if (!kFrozen)
      y = _mm512_fmadd_ps(per_channel(a), v,
                          _mm512_fmadd_ps(per_channel(b), _mm512_sub_ps(x, per_channel(mean)), per_channel(c)));
    A::store(to + at + i, y, m);
  }
}

template <typename A, Mask kMask, bool kFrozen>
void apply_rows(typename A::Elem* to, const Masked<typename A::Elem, float>& g, const float* mean, const float* a,
                const float* b, const float* c, int64_t pixels, int64_t channels) {
  if (channels == 1) return apply_row<A, kMask, true, kFrozen>(to, g, 0, mean, a, b, c, pixels);
  for (int64_t r = 0; r < pixels; ++r)
    apply_row<A, kMask, false, kFrozen>(to, g, r * channels, mean, a, b, c, channels);
}

template <typename A, Mask kMask>
void sum_products(const Masked<typename A::Elem, float>& g, const float* mean, int64_t pixels, int64_t channels,
                  double* first, double* second) {
  sum(Products<A, kMask>{g, mean}, pixels, channels, first, second);
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

template <typename A>
void sum_squares(const typename A::Elem* x, const float* center, int64_t pixels, int64_t channels, double* first,
                 double* second) {
  sum(Squares<A>{x, center}, pixels, channels, first, second);
}

template <typename A>
void sum_gradient(const Masked<typename A::Elem, float>& g, const float* mean, int64_t pixels, int64_t channels,
                  double* first, double* second) {
  if (g.mask == Mask::kOut) return sum_products<A, Mask::kOut>(g, mean, pixels, channels, first, second);
  if (g.mask == Mask::kRecompute) return sum_products<A, Mask::kRecompute>(g, mean, pixels, channels, first, second);
  return sum_products<A, Mask::kNone>(g, mean, pixels, channels, first, second);
}

template <typename A, bool kFrozen>
void apply_mask(typename A::Elem* to, const Masked<typename A::Elem, float>& g, const float* mean, const float* a,
                const float* b, const float* c, int64_t pixels, int64_t channels) {
  if (g.mask == Mask::kOut) return apply_rows<A, Mask::kOut, kFrozen>(to, g, mean, a, b, c, pixels, channels);
  if (g.mask == Mask::kRecompute)
    return apply_rows<A, Mask::kRecompute, kFrozen>(to, g, mean, a, b, c, pixels, channels);
  return apply_rows<A, Mask::kNone, kFrozen>(to, g, mean, a, b, c, pixels, channels);
}

template <typename A>
void apply(typename A::Elem* to, const Masked<typename A::Elem, float>& g, const float* mean, const float* a,
           const float* b, const float* c, int64_t pixels, int64_t channels) {
  if (b) return apply_mask<A, false>(to, g, mean, a, b, c, pixels, channels);
  return apply_mask<A, true>(to, g, mean, a, b, c, pixels, channels);
}

#undef INLINE

template <typename A>
constexpr TrainKernels<typename A::Elem, float> kernels_of() {
  return {center<A>, sum_squares<A>, sum_gradient<A>, apply<A>};
}

}  // namespace
}  // namespace resnet_fused::cpu::avx512
