// AVX2, FMA and F16C for the kernels of simd/: a register of 8 floats, and the types of tensors. bfloat16 and float16
// are converted to float32 as they are read. Everything here is static: files below avx2/ must not leave AVX2 code in
// symbols that the linker could share with the rest of the library.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace resnet_fused::cpu::avx2 {
namespace {

struct Vector {
  using Reg = __m256;
  using Mask = int;  // lanes from the first on: AVX2's masked accesses are slow
  using Flags = __m256i;
  using Index = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kPixels = 6;  // by 2 registers of channels: 12 of 16 registers accumulate
  static constexpr int kRowsOfShort = 1;
  static constexpr int kFewPixels = 4;  // by more, for short rows: 3x2 sums would wait for their latency
  static constexpr int kManyVectors = 3;
  static constexpr int kPixelsByOne = 12;  // by 1 register of channels
  static constexpr int kGradientRows = 4;  // by 2
  static constexpr int kLinesAhead = 4;    // of each filter that is packed
  static constexpr int64_t kSlabBytes = 256 << 10;

  static inline Reg zero() { return _mm256_setzero_ps(); }
  static inline Reg set1(float v) { return _mm256_set1_ps(v); }
  static inline Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static inline void store(float* p, Reg v) { _mm256_storeu_ps(p, v); }
  static inline Reg fmadd(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  // Returns the second operand if either is NaN.
  static inline Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  // v where it is larger or NaN, else best, which may be NaN.
  static inline Reg larger_or_nan(Reg best, Reg v) {
    const Reg takes = _mm256_or_ps(_mm256_cmp_ps(v, best, _CMP_GT_OQ), _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    return _mm256_blendv_ps(best, v, takes);
  }

  // Lane l of permute(v, index) is lane index[l] of v, which must lie in the same half.
  static inline Index load_index(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static inline Reg permute(Reg v, Index index) { return _mm256_permutevar_ps(v, index); }

  static constexpr Mask first(int lanes) { return lanes >= kLanes ? kLanes : lanes > 0 ? lanes : 0; }
  static inline Reg keep(Mask lanes, Reg v) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(lanes), lane)));
  }

  static inline Flags not_finite(Reg v) {
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(v), exponent), exponent);
  }
  static inline bool any(Flags flags) { return !_mm256_testz_si256(flags, flags); }
  static inline Flags no_flags() { return _mm256_setzero_si256(); }

  static inline void transpose(Reg (&rows)[kLanes]) {
    Reg blocks[kLanes];  // of 4x4
#pragma GCC unroll 2
    for (int i = 0; i < kLanes; i += 4) {
      const Reg a = _mm256_unpacklo_ps(rows[i], rows[i + 1]), b = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
      const Reg c = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]), d = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
      blocks[i] = _mm256_shuffle_ps(a, c, 0x44), blocks[i + 1] = _mm256_shuffle_ps(a, c, 0xee);
      blocks[i + 2] = _mm256_shuffle_ps(b, d, 0x44), blocks[i + 3] = _mm256_shuffle_ps(b, d, 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      rows[i] = _mm256_permute2f128_ps(blocks[i], blocks[i + 4], 0x20);
      rows[i + 4] = _mm256_permute2f128_ps(blocks[i], blocks[i + 4], 0x31);
    }
  }
};

// Calls f with a pointer to `lanes` elements at p and zeros after them, or with p itself if it has a whole register.
template <typename Elem, typename F>
inline auto with_zeros(const Elem* p, int lanes, const F& f) {
  if (lanes == Vector::kLanes) return f(p);
  Elem padded[Vector::kLanes] = {};
  for (int i = 0; i < lanes; ++i) padded[i] = p[i];
  return f(padded);
}

// Calls f with a pointer to a whole register's elements, of which `lanes` are then at p.
template <typename Elem, typename F>
inline void store_first(Elem* p, int lanes, const F& f) {
  if (lanes == Vector::kLanes) return f(p);
  Elem all[Vector::kLanes];
  f(all);
  for (int i = 0; i < lanes; ++i) p[i] = all[i];
}

struct Fp32 {
  using V = Vector;
  using Elem = float;
  using Operand = float;
  static constexpr int kPack = 1;
  static constexpr int kPart = 128;
  static inline __m256 broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  static inline __m256 weights(const float* p) { return _mm256_loadu_ps(p); }
  static inline __m256 channels(const float* p) { return _mm256_loadu_ps(p); }
  static inline __m256 madd(__m256 x, __m256 w, __m256 acc) { return _mm256_fmadd_ps(x, w, acc); }
  static inline __m256 load(const float* p, int lanes) {
    return with_zeros(p, lanes, [](const float* from) { return _mm256_loadu_ps(from); });
  }
  static inline void store(float* p, __m256 v, int lanes) {
    store_first(p, lanes, [&](float* to) { _mm256_storeu_ps(to, v); });
  }
  static inline __m256 round(__m256 v) { return v; }
  static inline float value(float v) { return v; }
};

// 8 numbers of 16 bits.
struct Halves {
  static inline __m128i load(const uint16_t* p, int lanes) {
    return with_zeros(p, lanes,
                      [](const uint16_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); });
  }
  static inline void store(uint16_t* p, __m128i v, int lanes) {
    store_first(p, lanes, [&](uint16_t* to) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), v); });
  }
};

struct ConvertsBf16 : Halves {
  static inline float value(uint16_t v) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(v << 16))); }
  static inline __m256 widen(__m128i v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16)); }
  // to nearest even; a NaN becomes the quiet NaN of scalar.h
  static inline __m128i narrow(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded =
        _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i wide = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  }
};

struct ConvertsFp16 : Halves {
  static inline float value(uint16_t v) { return _cvtsh_ss(v); }
  static inline __m256 widen(__m128i v) { return _mm256_cvtph_ps(v); }
  static inline __m128i narrow(__m256 v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
};

}  // namespace
}  // namespace resnet_fused::cpu::avx2
