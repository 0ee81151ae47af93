// AVX-512 loops for bn_kernels.h, 16 lanes per register. Everything here is static: files below avx512/ must not leave
// AVX-512 code in symbols that the linker could share with the rest of the library.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "cpu/bn_kernels.h"
#include "cpu/scalar.h"

namespace resnet_fused::cpu::avx512 {
namespace {

constexpr int64_t kWide = 16;  // lanes per register

// Which lanes hold elements: all, or the first few. All avoids the mask: an unneeded one costs as much as the
// arithmetic.
struct All {};
using Some = __mmask16;

// kVanishes: the largest value that store() rounds to 0 (scalar.h).
struct Fp32 {
  using Elem = float;
  static constexpr float kVanishes = 0;
  static inline __m512 load(const float* p, All) { return _mm512_loadu_ps(p); }
  static inline __m512 load(const float* p, Some m) { return _mm512_maskz_loadu_ps(m, p); }
  static inline void store(float* p, __m512 v, All) { _mm512_storeu_ps(p, v); }
  static inline void store(float* p, __m512 v, Some m) { _mm512_mask_storeu_ps(p, m, v); }
  // Stores values that were loaded as this type, so no rounding is needed.
  template <typename Lanes>
  static inline void store_again(float* p, __m512 v, Lanes m) {
    store(p, v, m);
  }
};

#ifdef __AVX512BF16__
struct Bf16 {
  using Elem = BFloat16;
  static constexpr float kVanishes = 0x1.fffffcp-127f;  // the conversion flushes subnormals to 0
  static inline __m512 wide(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  static inline __m512 load(const BFloat16* p, All) {
    return wide(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static inline __m512 load(const BFloat16* p, Some m) { return wide(_mm256_maskz_loadu_epi16(m, p)); }
  static inline void store(BFloat16* p, __m512 v, All) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
  }
  static inline void store(BFloat16* p, __m512 v, Some m) {
    _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v));
  }
  static inline __m256i narrow(__m512 v) {
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16));
  }
  static inline void store_again(BFloat16* p, __m512 v, All) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v));
  }
  static inline void store_again(BFloat16* p, __m512 v, Some m) { _mm256_mask_storeu_epi16(p, m, narrow(v)); }
};
#endif

#define ALWAYS __attribute__((always_inline))
#define INLINE inline ALWAYS

INLINE Some first_lanes(int64_t n) { return static_cast<Some>((1u << n) - 1); }  // n < 16

// Lanes outside the mask are 0, whatever is subtracted.
INLINE __m512 minus(__m512 a, __m512 b, All) { return _mm512_sub_ps(a, b); }
INLINE __m512 minus(__m512 a, __m512 b, Some m) { return _mm512_maskz_sub_ps(m, a, b); }

// Calls visit(i, lanes) for i = 0, 16, 32, ... below count.
template <typename Visit>
INLINE void for_vectors(int64_t count, const Visit& visit) {
  int64_t i = 0;
  for (; i + kWide <= count; i += kWide) visit(i, All{});
  if (i < count) visit(i, first_lanes(count - i));
}

template <typename A, Mask kMask, typename Lanes>
INLINE __m512 masked(const Masked<typename A::Elem, float>& g, int64_t at, __m512 x, __m512 scale, __m512 shift,
                     Lanes m) {
  const __m512 v = A::load(g.grad + at, m);
  if (kMask == Mask::kNone) return v;
  const __m512 y = kMask == Mask::kRecompute ? _mm512_fmadd_ps(x, scale, shift) : A::load(g.out + at, m);
  const __m512 closed = _mm512_set1_ps(kMask == Mask::kRecompute ? A::kVanishes : 0);
  // not (y <= closed), so NaN passes the gradient
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, closed, _CMP_NLE_UQ), v);
}

// Calls visit(at, channel, lanes, per_channel) for every 16 elements of the block, front to back; per_channel(p) loads
// p for their channels.
template <typename Visit>
INLINE void for_each(Block block, const Visit& visit) {
  int64_t at = 0;
  if (block.planes)
    for (int64_t k = 0; k < block.channels; ++k, at += block.pixels) {
      const auto per_channel = [k](const float* p) ALWAYS { return _mm512_set1_ps(p[k]); };
      for_vectors(block.pixels, [&](int64_t i, auto lanes) ALWAYS { visit(at + i, lanes, per_channel); });
    }
  else
    for (int64_t r = 0; r < block.pixels; ++r, at += block.channels)
      for_vectors(block.channels, [&](int64_t c, auto lanes) ALWAYS {
        visit(at + c, lanes, [=](const float* p) ALWAYS { return Fp32::load(p + c, lanes); });
      });
}

enum class Other { kNone, kPlain, kScaled };

template <typename A, Other kOther>
void apply_sum(typename A::Elem* to, const Sum<typename A::Elem, float>& s, Block block) {
  // ReLU, or max with -Inf without one; NaN passes.
  const __m512 zero = _mm512_setzero_ps(), floor = s.relu ? zero : _mm512_set1_ps(-__builtin_inff());
  for_each(block, [&](int64_t at, auto m, const auto& per_channel) ALWAYS {
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

constexpr int64_t kAhead = 2048;  // elements

template <typename T>
INLINE void prefetch_vectors(const T* p, int vectors) {
  for (int64_t i = 0; i < vectors * kWide; i += 64 / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(p + i);
}

// Terms of the statistics sums: x - center and its square
template <typename A>
struct Squares {
  const typename A::Elem* x;
  const float* center;

  struct Channels {  // loop-invariant per-channel values
    __m512 center;
  };
  template <typename PerChannel>
  INLINE Channels channels(const PerChannel& per_channel) const {
    return {per_channel(center)};
  }
  INLINE void prefetch(int64_t at, int vectors) const { prefetch_vectors(x + at, vectors); }
  template <typename Lanes>
  INLINE void add(const Channels& k, int64_t at, Lanes m, __m512& sum, __m512& squares) const {
    const __m512 d = minus(A::load(x + at, m), k.center, m);
    sum = _mm512_add_ps(sum, d);
    squares = _mm512_fmadd_ps(d, d, squares);
  }
};

// Terms of the gradient sums: the masked gradient g, and g * (x - mean)
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
  INLINE void prefetch(int64_t at, int vectors) const {
    prefetch_vectors(g.x + at, vectors);
    prefetch_vectors(g.grad + at, vectors);
    if (kMask == Mask::kOut || kMask == Mask::kOutStored) prefetch_vectors(g.out + at, vectors);
  }
  template <typename Lanes>
  INLINE void add(const Channels& k, int64_t at, Lanes m, __m512& sum, __m512& products) const {
    const __m512 x = A::load(g.x + at, m), v = masked<A, kMask>(g, at, x, k.scale, k.shift, m);
    if (kMask == Mask::kOutStored) A::store_again(g.masked_grad + at, v, m);
    sum = _mm512_add_ps(sum, v);
    products = _mm512_fmadd_ps(v, minus(x, k.mean, m), products);
  }
};

INLINE __m512d low(__m512 v) { return _mm512_cvtps_pd(_mm512_castps512_ps256(v)); }
INLINE __m512d high(__m512 v) { return _mm512_cvtps_pd(_mm512_extractf32x8_ps(v, 1)); }

INLINE void add_doubles(double* to, __m512 v, All) {
  _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), low(v)));
  _mm512_storeu_pd(to + 8, _mm512_add_pd(_mm512_loadu_pd(to + 8), high(v)));
}
INLINE void add_doubles(double* to, __m512 v, Some m) {
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
    const auto channels = q.channels([k](const float* p) ALWAYS { return _mm512_set1_ps(p[k]); });
    for (int64_t i = 0; i < block.pixels; i += kPart) {
      int64_t at = k * block.pixels + i;
      int64_t left = block.pixels - i < kPart ? block.pixels - i : kPart;
      __m512 a[4], b[4];
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) a[v] = b[v] = _mm512_setzero_ps();
      for (; left >= kPlaneLanes; left -= kPlaneLanes, at += kPlaneLanes)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) q.add(channels, at + v * kWide, All{}, a[v], b[v]);
      const int64_t vectors = left / kWide;
#pragma GCC unroll 3
      for (int v = 0; v < 3; ++v)
        if (v < vectors) q.add(channels, at + v * kWide, All{}, a[v], b[v]);
      if (left % kWide) q.add(channels, at + vectors * kWide, first_lanes(left % kWide), a[3], b[3]);
      first[k] += total(a);
      second[k] += total(b);
    }
  }
}

// R rows of up to kSpan channels, accumulated into sums in L1
template <int R, typename Q>
INLINE void sum_few_rows(const Q& q, int64_t at, int64_t step, int64_t c, int64_t width, float* a, float* b) {
  for_vectors(width, [&](int64_t i, auto lanes) ALWAYS {
    const auto channels = q.channels([=](const float* p) ALWAYS { return Fp32::load(p + c + i, lanes); });
    __m512 first = _mm512_load_ps(a + i), second = _mm512_load_ps(b + i);
    q.prefetch(at + R * i + (R * step < kAhead ? kAhead : R * step), R);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) q.add(channels, at + r * step + i, lanes, first, second);
    _mm512_store_ps(a + i, first);
    _mm512_store_ps(b + i, second);
  });
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
      for_vectors(width, [&](int64_t i, auto lanes) ALWAYS {
        add_doubles(first + c + i, _mm512_load_ps(a + i), lanes);
        add_doubles(second + c + i, _mm512_load_ps(b + i), lanes);
      });
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
  if (g.mask == Mask::kOutStored) return sum(Products<A, Mask::kOutStored>{g}, block, first, second);
  if (g.mask == Mask::kRecompute) return sum(Products<A, Mask::kRecompute>{g}, block, first, second);
  sum(Products<A, Mask::kNone>{g}, block, first, second);
}

template <typename A, Mask kMask, bool kFrozen>
void gradient(typename A::Elem* to, const Masked<typename A::Elem, float>& g, const float* a, const float* b,
              const float* c, Block block) {
  for_each(block, [&](int64_t at, auto m, const auto& per_channel) ALWAYS {
    __m512 x = _mm512_setzero_ps(), scale = x, shift = x;
    if (!kFrozen || kMask == Mask::kRecompute) x = A::load(g.x + at, m);
    if (kMask == Mask::kRecompute) {
      scale = per_channel(g.scale);
      shift = per_channel(g.shift);
    }
    const __m512 v = masked<A, kMask>(g, at, x, scale, shift, m);
    __m512 y = v;
    if (!kFrozen) {
      y = _mm512_sub_ps(v, per_channel(c));
      y = _mm512_fnmadd_ps(per_channel(b), _mm512_sub_ps(x, per_channel(g.mean)), y);
    }
    A::store(to + at, _mm512_mul_ps(per_channel(a), y), m);
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
  for_vectors(channels, [&](int64_t c, auto lanes) ALWAYS {
    const __m512 x = A::load(rows[0] + c, lanes);
    __m512 sum = _mm512_setzero_ps(), spread = sum;
    for (int64_t i = 1; i < count; ++i) {
      const __m512 d = _mm512_sub_ps(A::load(rows[i] + c, lanes), x);
      sum = _mm512_add_ps(sum, d);
      spread = _mm512_max_ps(spread, _mm512_abs_ps(d));
    }
    const __m512 coarse = _mm512_mul_ps(spread, _mm512_set1_ps(round_at<float>));
    const __m512 mean = _mm512_sub_ps(_mm512_add_ps(_mm512_fmadd_ps(sum, share, x), coarse), coarse);
    // Inf cannot be a center
    const __mmask16 finite = _mm512_cmp_ps_mask(_mm512_sub_ps(mean, mean), _mm512_setzero_ps(), _CMP_EQ_OQ);
    Fp32::store(to + c, _mm512_maskz_mov_ps(finite, mean), lanes);
  });
}

#undef INLINE
#undef ALWAYS

template <typename A>
constexpr BnKernels<typename A::Elem, float> kernels_of() {
  return {apply<A>, center<A>, sum_squares<A>, sum_gradient<A>, apply_gradient<A>};
}

}  // namespace
}  // namespace resnet_fused::cpu::avx512
