// AVX-512 for the kernels of simd/: a register of 16 floats, and the types of tensors. Everything here is static: files
// below avx512/ must not leave AVX-512 code in symbols that the linker could share with the rest of the library.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace resnet_fused::cpu::avx512 {
namespace {

struct Vector {
  using Reg = __m512;
  using Mask = __mmask16;
  using Flags = __mmask16;
  using Index = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kPixels = 14;      // by 2 registers of channels: 28 of 32 registers accumulate
  static constexpr int kRowsOfShort = 2;  // in a register block of short rows: reads half as many weights as 7 by 4
  static constexpr int kFewPixels = 7;    // by more, for groups
  static constexpr int kManyVectors = 4;
  static constexpr int kPixelsByOne = 14;           // by 1 register of channels
  static constexpr int kGradientRows = 8;           // by 2
  static constexpr int kLinesAhead = 4;             // of each filter that is packed
  static constexpr int64_t kSlabBytes = 256 << 10;  // a quarter of a 1 MiB L2

  static inline Reg zero() { return _mm512_setzero_ps(); }
  static inline Reg set1(float v) { return _mm512_set1_ps(v); }
  static inline Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static inline void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static inline Reg fmadd(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  // Returns the second operand if either is NaN.
  static inline Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  // v where it is larger or NaN, else best, which may be NaN.
  static inline Reg larger_or_nan(Reg best, Reg v) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, best, _CMP_GT_OQ) | _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), best,
                                v);
  }

  // Lane l of permute(v, index) is lane index[l] of v.
  static inline Index load_index(const int32_t* p) { return _mm512_loadu_si512(p); }
  static inline Reg permute(Reg v, Index index) { return _mm512_permutexvar_ps(index, v); }

  static constexpr Mask first(int lanes) {
    return lanes >= kLanes ? 0xffff : static_cast<Mask>((1u << (lanes > 0 ? lanes : 0)) - 1);
  }
  static inline Reg keep(Mask lanes, Reg v) { return _mm512_maskz_mov_ps(lanes, v); }

  static inline Flags not_finite(Reg v) {
    return _mm512_fpclass_ps_mask(v, 0x99);  // quiet and signalling NaN, +Inf, -Inf
  }
  static inline bool any(Flags flags) { return flags; }
  static inline Flags no_flags() { return 0; }

  static inline void transpose(Reg (&rows)[kLanes]) {
    __m512d halves[kLanes];  // of 4x4 blocks
#pragma GCC unroll 4
    for (int i = 0; i < kLanes; i += 4) {
      const Reg a = _mm512_unpacklo_ps(rows[i], rows[i + 1]), b = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
      const Reg c = _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]), d = _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]);
      halves[i] = _mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(c));
      halves[i + 1] = _mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(c));
      halves[i + 2] = _mm512_unpacklo_pd(_mm512_castps_pd(b), _mm512_castps_pd(d));
      halves[i + 3] = _mm512_unpackhi_pd(_mm512_castps_pd(b), _mm512_castps_pd(d));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // then exchange the blocks
      const Reg a = _mm512_castpd_ps(halves[i]), b = _mm512_castpd_ps(halves[i + 4]);
      const Reg c = _mm512_castpd_ps(halves[i + 8]), d = _mm512_castpd_ps(halves[i + 12]);
      const Reg ab_even = _mm512_shuffle_f32x4(a, b, 0x88), ab_odd = _mm512_shuffle_f32x4(a, b, 0xdd);
      const Reg cd_even = _mm512_shuffle_f32x4(c, d, 0x88), cd_odd = _mm512_shuffle_f32x4(c, d, 0xdd);
      rows[i] = _mm512_shuffle_f32x4(ab_even, cd_even, 0x88);
      rows[i + 4] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0x88);
      rows[i + 8] = _mm512_shuffle_f32x4(ab_even, cd_even, 0xdd);
      rows[i + 12] = _mm512_shuffle_f32x4(ab_odd, cd_odd, 0xdd);
    }
  }
};

struct Fp32 {
  using V = Vector;
  using Elem = float;
  using Operand = float;
  static constexpr int kPack = 1;
  static constexpr int kPart = 128;
  static inline __m512 broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static inline __m512 weights(const float* p) { return _mm512_loadu_ps(p); }
  // kLanes channels of a pixel
  static inline __m512 channels(const float* p) { return _mm512_loadu_ps(p); }
  static inline __m512 madd(__m512 x, __m512 w, __m512 acc) { return _mm512_fmadd_ps(x, w, acc); }
  static inline __m512 load(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
  static inline void store(float* p, __m512 v, __mmask16 m) { _mm512_mask_storeu_ps(p, m, v); }
  static inline __m512 round(__m512 v) { return v; }
  static inline float value(float v) { return v; }
};

// 16 numbers of 16 bits.
struct Halves {
  static inline __m256i load(const uint16_t* p, __mmask16 m) { return _mm256_maskz_loadu_epi16(m, p); }
  static inline void store(uint16_t* p, __m256i v, __mmask16 m) { _mm256_mask_storeu_epi16(p, m, v); }
};

struct ConvertsFp16 : Halves {
  static inline float value(uint16_t v) { return _cvtsh_ss(v); }
  static inline __m512 widen(__m256i v) { return _mm512_cvtph_ps(v); }
  static inline __m256i narrow(__m512 v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }
};

struct ConvertsBf16 : Halves {
  static inline float value(uint16_t v) {
    const uint32_t bits = static_cast<uint32_t>(v) << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
  }
  static inline __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
  // to nearest even; a NaN becomes the quiet NaN of scalar.h
  static inline __m256i narrow(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512 nan = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
    return upper(_mm512_mask_mov_ps(_mm512_castsi512_ps(rounded), _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan));
  }
  static inline __m256i upper(__m512 v) { return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16)); }
};

#ifdef __AVX512BF16__
// 32 bfloat16 numbers. Those that are not negative, and NaN without its sign, are ordered as their bits are.
struct Words {
  using Reg = __m512i;
  using Mask = __mmask32;
  static constexpr int kLanes = 32;
  static inline Mask first(int64_t lanes) {
    return lanes >= kLanes ? ~Mask{0} : (Mask{1} << (lanes > 0 ? lanes : 0)) - 1;
  }
  static inline Reg load(const uint16_t* p, Mask m) { return _mm512_maskz_loadu_epi16(m, p); }
  static inline void store(uint16_t* p, Reg v, Mask m) { _mm512_mask_storeu_epi16(p, m, v); }
  static inline Reg larger(Reg a, Reg b) { return _mm512_max_epu16(a, b); }
  static inline Reg larger_magnitude(Reg largest, Reg v) {
    return larger(largest, _mm512_and_si512(v, _mm512_set1_epi16(0x7fff)));
  }
  static inline bool are_finite(Reg magnitudes) {
    return !_mm512_cmpge_epu16_mask(magnitudes, _mm512_set1_epi16(0x7f80));
  }
  static inline __m512 low(Reg v) { return ConvertsBf16::widen(_mm512_castsi512_si256(v)); }
  static inline __m512 high(Reg v) { return ConvertsBf16::widen(_mm512_extracti64x4_epi64(v, 1)); }
  static inline Reg narrow(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
  static inline Reg keep(Mask m, Reg v) { return _mm512_maskz_mov_epi16(m, v); }
  // Pairs (a[i], b[i]): low for i in 0-3, 8-11, 16-19, 24-27, high for the others.
  static inline __m512 interleave_low(Reg a, Reg b) { return _mm512_castsi512_ps(_mm512_unpacklo_epi16(a, b)); }
  static inline __m512 interleave_high(Reg a, Reg b) { return _mm512_castsi512_ps(_mm512_unpackhi_epi16(a, b)); }
  // Narrows numbers in the order of those pairs into the order of i.
  static inline Reg narrow_interleaved(__m512 low, __m512 high) {
    static constexpr int64_t kFours[] = {0, 4, 1, 5, 2, 6, 3, 7};
    return _mm512_permutexvar_epi64(_mm512_loadu_si512(kFours), narrow(low, high));
  }
};

struct Bf16 {
  using V = Vector;
  using Elem = uint16_t;
  using Operand = uint16_t;
  static constexpr int kPack = 2;
  static constexpr int kPart = 0;  // one running sum: the final rounding to bf16 is 65,000 times coarser
  static inline __m512 broadcast(const uint16_t* p) {
    int pair;
    __builtin_memcpy(&pair, p, 4);
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
  }
  static inline __m512 weights(const uint16_t* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static inline __m512 channels(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
  static inline __m512 madd(__m512 x, __m512 w, __m512 acc) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_castps_si512(x), (__m512bh)_mm512_castps_si512(w));
  }
  static inline __m512 load(const uint16_t* p, __mmask16 m) { return ConvertsBf16::widen(Halves::load(p, m)); }
  static inline void store(uint16_t* p, __m512 v, __mmask16 m) { Halves::store(p, (__m256i)_mm512_cvtneps_pbh(v), m); }
  static inline __m512 round(__m512 v) { return ConvertsBf16::widen((__m256i)_mm512_cvtneps_pbh(v)); }

  // Pairs of numbers, for packing.
  static inline __m512 load_pairs(const uint16_t* p, __mmask16 m) {
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi32(m, p));
  }
  static inline __m512 load_pairs(const uint16_t* low, const uint16_t* high, __mmask16 m) {
    const __m512i first = _mm512_cvtepu16_epi32(Halves::load(low, m));
    const __m512i second = _mm512_cvtepu16_epi32(Halves::load(high, m));
    return _mm512_castsi512_ps(_mm512_or_si512(first, _mm512_slli_epi32(second, 16)));
  }
  static inline void store_pairs(void* p, __m512 v) { _mm512_storeu_si512(p, _mm512_castps_si512(v)); }
  static inline __m512 larger_pairs(__m512 largest, __m512 v) {
    return _mm512_castsi512_ps(Words::larger_magnitude(_mm512_castps_si512(largest), _mm512_castps_si512(v)));
  }
  static inline bool pairs_are_finite(__m512 magnitudes) { return Words::are_finite(_mm512_castps_si512(magnitudes)); }
  static inline float value(uint16_t v) { return ConvertsBf16::value(v); }
};
#endif

}  // namespace
}  // namespace resnet_fused::cpu::avx512
