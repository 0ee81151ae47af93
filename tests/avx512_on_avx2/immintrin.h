// Emulates the AVX-512 instructions of csrc/cpu/avx512 on a processor with AVX2, FMA and F16C: bit-exact, slow.
//
// This folder comes first on the include path, and -mavx2 -mfma -mf16c replace AVX-512's flags. The types are the
// compiler's own. The functions are in the kernels' namespace, where they hide the compiler's intrinsics, which cannot
// be inlined without AVX-512; so using an instruction that is missing here is a compile error.
//
// A masked access touches only the memory of its lanes, and an aligned access traps where the processor would.
#pragma once
#include_next <immintrin.h>

#include <cstdint>

// The kernels test this macro for bfloat16 support. The compiler's headers, included above, must not see it.
#define __AVX512BF16__ 1

#define INSTRUCTION static inline __attribute__((always_inline, unused))
// Not inlined: each expands to many operations; as calls, kernels unrolled 14 times compile in seconds.
#define LONG_INSTRUCTION static inline __attribute__((noinline, unused))

namespace resnet_fused::cpu::avx512 {

namespace emulated {

constexpr int kLanes = 16;
typedef int32_t Int __attribute__((vector_size(64)));
typedef uint32_t Bits __attribute__((vector_size(64)));
typedef uint16_t Short __attribute__((vector_size(32)));
typedef int16_t Words __attribute__((vector_size(64)));
typedef uint16_t UnsignedWords __attribute__((vector_size(64)));

template <typename To, typename From>
INSTRUCTION To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <typename Vector>
INSTRUCTION Vector load(const void* p) {
  Vector v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <typename Vector>
INSTRUCTION void store(void* p, Vector v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Four words from `first` on of each eight, of a and b in turn.
INSTRUCTION __m512i interleave(__m512i a, __m512i b, int first) {
  const Words x = bits_of<Words>(a), y = bits_of<Words>(b);
  Words v;
  for (int i = 0; i < 32; i += 2) v[i] = x[i / 8 * 8 + first + i % 8 / 2], v[i + 1] = y[i / 8 * 8 + first + i % 8 / 2];
  return bits_of<__m512i>(v);
}

INSTRUCTION void check_aligned(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 64) __builtin_trap();
}

// Loads the lanes of `mask` from memory; the others are 0.
template <typename Vector, typename Elem>
INSTRUCTION Vector load_lanes(uint32_t mask, const Elem* p) {
  constexpr int kCount = sizeof(Vector) / sizeof(Elem);
  if (mask == (uint64_t{1} << kCount) - 1) return load<Vector>(p);
  Elem lanes[kCount] = {};
  for (int i = 0; i < kCount; ++i)
    if (mask >> i & 1) lanes[i] = p[i];
  return load<Vector>(lanes);
}

template <typename Vector, typename Elem>
INSTRUCTION void store_lanes(Elem* p, uint32_t mask, Vector v) {
  constexpr int kCount = sizeof(Vector) / sizeof(Elem);
  if (mask == (uint64_t{1} << kCount) - 1) return store(p, v);
  Elem lanes[kCount];
  store(lanes, v);
  for (int i = 0; i < kCount; ++i)
    if (mask >> i & 1) p[i] = lanes[i];
}

INSTRUCTION __m256 half(__m512 v, int which) {
  __m256 halves[2];
  store(halves, v);
  return halves[which];
}

INSTRUCTION __m512 join(__m256 low, __m256 high) {
  const __m256 halves[2] = {low, high};
  return load<__m512>(halves);
}

// all ones in the lanes of `mask`
INSTRUCTION Int lanes_of(__mmask16 mask) {
  const Int bit = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                   1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
  return (bit & static_cast<int32_t>(mask)) != 0;
}

// mask of the lanes that are all ones
INSTRUCTION __mmask16 mask_of(Int lanes) {
  const __m512 v = bits_of<__m512>(lanes);
  return static_cast<__mmask16>(_mm256_movemask_ps(half(v, 0)) | _mm256_movemask_ps(half(v, 1)) << 8);
}

INSTRUCTION __m512 select(Int where, __m512 yes, __m512 no) { return where ? yes : no; }

constexpr uint32_t kSign = 1u << 31, kInf = 0x7f800000, kQuiet = 1u << 22;

// v with subnormals flushed to zeros of their sign
INSTRUCTION __m512 without_subnormal(__m512 v) {
  const Bits bits = bits_of<Bits>(v);
  return bits_of<__m512>((bits & kInf) == 0 ? bits & kSign : bits);
}

// the even or odd element (which: 0 or 1) of each bfloat16 pair
INSTRUCTION __m512 widen(__m512bh v, int which) {
  const Bits bits = bits_of<Bits>(v);
  return bits_of<__m512>(which ? bits & 0xffff0000u : bits << 16);
}

// the VFPCLASS categories of one number, as bits of the instruction's immediate
INSTRUCTION int class_of(uint32_t bits) {
  const uint32_t size = bits & ~kSign;
  const bool negative = bits & kSign;
  if (size > kInf) return size & kQuiet ? 0x01 : 0x80;
  if (size == kInf) return negative ? 0x10 : 0x08;
  if (size == 0) return negative ? 0x04 : 0x02;
  return (size < (1u << 23) ? 0x20 : 0) | (negative ? 0x40 : 0);
}

}  // namespace emulated

// memory

INSTRUCTION __m512 _mm512_loadu_ps(const void* p) { return emulated::load<__m512>(p); }
INSTRUCTION __m512d _mm512_loadu_pd(const void* p) { return emulated::load<__m512d>(p); }
INSTRUCTION __m512i _mm512_loadu_si512(const void* p) { return emulated::load<__m512i>(p); }
INSTRUCTION __m512 _mm512_load_ps(const void* p) {
  emulated::check_aligned(p);
  return emulated::load<__m512>(p);
}
INSTRUCTION void _mm512_storeu_ps(void* p, __m512 v) { emulated::store(p, v); }
INSTRUCTION void _mm512_storeu_pd(void* p, __m512d v) { emulated::store(p, v); }
INSTRUCTION void _mm512_storeu_si512(void* p, __m512i v) { emulated::store(p, v); }
INSTRUCTION void _mm512_store_ps(void* p, __m512 v) {
  emulated::check_aligned(p);
  emulated::store(p, v);
}
INSTRUCTION __m512 _mm512_maskz_loadu_ps(__mmask16 m, const void* p) {
  return emulated::load_lanes<__m512>(m, static_cast<const float*>(p));
}
INSTRUCTION __m512i _mm512_maskz_loadu_epi32(__mmask16 m, const void* p) {
  return emulated::load_lanes<__m512i>(m, static_cast<const int32_t*>(p));
}
INSTRUCTION __m512d _mm512_maskz_loadu_pd(__mmask8 m, const void* p) {
  return emulated::load_lanes<__m512d>(m, static_cast<const double*>(p));
}
INSTRUCTION __m256i _mm256_maskz_loadu_epi16(__mmask16 m, const void* p) {
  return emulated::load_lanes<__m256i>(m, static_cast<const uint16_t*>(p));
}
INSTRUCTION void _mm512_mask_storeu_ps(void* p, __mmask16 m, __m512 v) {
  emulated::store_lanes(static_cast<float*>(p), m, v);
}
INSTRUCTION void _mm512_mask_storeu_pd(void* p, __mmask8 m, __m512d v) {
  emulated::store_lanes(static_cast<double*>(p), m, v);
}
INSTRUCTION __m512i _mm512_maskz_loadu_epi16(__mmask32 m, const void* p) {
  return emulated::load_lanes<__m512i>(m, static_cast<const uint16_t*>(p));
}
INSTRUCTION __m512i _mm512_maskz_mov_epi16(__mmask32 m, __m512i v) {
  return emulated::load_lanes<__m512i>(m, reinterpret_cast<const uint16_t*>(&v));
}
INSTRUCTION void _mm512_mask_storeu_epi16(void* p, __mmask32 m, __m512i v) {
  emulated::store_lanes(static_cast<uint16_t*>(p), m, v);
}
INSTRUCTION void _mm256_mask_storeu_epi16(void* p, __mmask16 m, __m256i v) {
  emulated::store_lanes(static_cast<uint16_t*>(p), m, v);
}

// casts: reinterpret all bits or part of them

INSTRUCTION __m512i _mm512_castps_si512(__m512 v) { return emulated::bits_of<__m512i>(v); }
INSTRUCTION __m512i _mm512_castsi256_si512(__m256i v) {
  emulated::Int wide = ~emulated::Int{};  // the upper half is undefined
  __builtin_memcpy(&wide, &v, sizeof v);
  return emulated::bits_of<__m512i>(wide);
}
INSTRUCTION __m512 _mm512_castsi512_ps(__m512i v) { return emulated::bits_of<__m512>(v); }
INSTRUCTION __m512d _mm512_castps_pd(__m512 v) { return emulated::bits_of<__m512d>(v); }
INSTRUCTION __m512 _mm512_castpd_ps(__m512d v) { return emulated::bits_of<__m512>(v); }
INSTRUCTION __m256 _mm512_castps512_ps256(__m512 v) { return emulated::half(v, 0); }
INSTRUCTION __m256 _mm512_extractf32x8_ps(__m512 v, int which) { return emulated::half(v, which); }

// constants

INSTRUCTION __m512 _mm512_setzero_ps() { return __m512{}; }
INSTRUCTION __m512 _mm512_set1_ps(float v) { return __m512{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }
INSTRUCTION __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
INSTRUCTION __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return emulated::bits_of<__m512i>(emulated::bits_of<emulated::Bits>(a) + emulated::bits_of<emulated::Bits>(b));
}
INSTRUCTION __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
INSTRUCTION __m512i _mm512_set1_epi16(int16_t v) { return emulated::bits_of<__m512i>(emulated::Words{} + v); }
INSTRUCTION __m512i _mm512_set1_epi32(int v) { return emulated::bits_of<__m512i>(emulated::Int{} + v); }

// arithmetic

INSTRUCTION __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
INSTRUCTION __m512d _mm512_add_pd(__m512d a, __m512d b) { return a + b; }
INSTRUCTION __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
INSTRUCTION __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
// returns the second operand if both are zero or either is NaN
INSTRUCTION __m512 _mm512_max_ps(__m512 a, __m512 b) { return emulated::select(a > b, a, b); }
INSTRUCTION __m512 _mm512_abs_ps(__m512 v) {
  return emulated::bits_of<__m512>(emulated::bits_of<emulated::Bits>(v) & ~emulated::kSign);
}
INSTRUCTION __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  using emulated::half;
  return emulated::join(_mm256_fmadd_ps(half(a, 0), half(b, 0), half(c, 0)),
                        _mm256_fmadd_ps(half(a, 1), half(b, 1), half(c, 1)));
}
INSTRUCTION __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) {
  using emulated::half;
  return emulated::join(_mm256_fnmadd_ps(half(a, 0), half(b, 0), half(c, 0)),
                        _mm256_fnmadd_ps(half(a, 1), half(b, 1), half(c, 1)));
}
INSTRUCTION double _mm512_reduce_add_pd(__m512d v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}
INSTRUCTION __m512i _mm512_slli_epi32(__m512i v, unsigned count) {
  return emulated::bits_of<__m512i>(emulated::bits_of<emulated::Bits>(v) << count);  // count < 32
}
INSTRUCTION __m512i _mm512_srli_epi32(__m512i v, unsigned count) {
  return emulated::bits_of<__m512i>(emulated::bits_of<emulated::Bits>(v) >> count);
}

// masks

INSTRUCTION __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  using emulated::mask_of;
  switch (predicate) {
    case _CMP_EQ_OQ:
      return mask_of(a == b);
    case _CMP_LT_OQ:
      return mask_of(a < b);
    case _CMP_GT_OQ:
      return mask_of(a > b);
    case _CMP_NLE_UQ:
      return mask_of(~(a <= b));
    case _CMP_UNORD_Q:
      return mask_of(~((a == a) & (b == b)));
  }
  __builtin_trap();  // no kernel uses this predicate
}
LONG_INSTRUCTION __mmask16 _mm512_fpclass_ps_mask(__m512 v, int classes) {
  const emulated::Bits bits = emulated::bits_of<emulated::Bits>(v);
  unsigned mask = 0;
  for (int i = 0; i < emulated::kLanes; ++i) mask |= unsigned((emulated::class_of(bits[i]) & classes) != 0) << i;
  return static_cast<__mmask16>(mask);
}
INSTRUCTION __mmask16 _mm512_mask_fpclass_ps_mask(__mmask16 m, __m512 v, int classes) {
  return m & _mm512_fpclass_ps_mask(v, classes);
}
INSTRUCTION __m512 _mm512_mask_blend_ps(__mmask16 m, __m512 no, __m512 yes) {
  return emulated::select(emulated::lanes_of(m), yes, no);
}
INSTRUCTION __m512 _mm512_permutexvar_ps(__m512i index, __m512 v) {
  return emulated::bits_of<__m512>(
      __builtin_shuffle(emulated::bits_of<emulated::Int>(v), emulated::bits_of<emulated::Int>(index)));
}
INSTRUCTION __m512 _mm512_mask_mov_ps(__m512 no, __mmask16 m, __m512 yes) { return _mm512_mask_blend_ps(m, no, yes); }
INSTRUCTION __mmask32 _mm512_cmpeq_epi16_mask(__m512i a, __m512i b) {
  const emulated::Words equal = emulated::bits_of<emulated::Words>(a) == emulated::bits_of<emulated::Words>(b);
  __mmask32 mask = 0;
  for (int i = 0; i < 32; ++i) mask |= static_cast<__mmask32>(equal[i] & 1) << i;
  return mask;
}
INSTRUCTION __m512i _mm512_max_epu16(__m512i a, __m512i b) {
  const auto x = emulated::bits_of<emulated::UnsignedWords>(a), y = emulated::bits_of<emulated::UnsignedWords>(b);
  return emulated::bits_of<__m512i>(x > y ? x : y);
}
INSTRUCTION __mmask32 _mm512_cmpge_epu16_mask(__m512i a, __m512i b) {
  return _mm512_cmpeq_epi16_mask(_mm512_max_epu16(a, b), a);
}
INSTRUCTION __m512 _mm512_maskz_mov_ps(__mmask16 m, __m512 v) { return _mm512_mask_blend_ps(m, __m512{}, v); }
INSTRUCTION __m512 _mm512_maskz_sub_ps(__mmask16 m, __m512 a, __m512 b) { return _mm512_maskz_mov_ps(m, a - b); }
INSTRUCTION __m512 _mm512_maskz_max_ps(__mmask16 m, __m512 a, __m512 b) {
  return _mm512_maskz_mov_ps(m, _mm512_max_ps(a, b));
}

// permutations

INSTRUCTION __m512 _mm512_unpacklo_ps(__m512 a, __m512 b) {
  return __builtin_shuffle(a, b, emulated::Int{0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29});
}
INSTRUCTION __m512 _mm512_unpackhi_ps(__m512 a, __m512 b) {
  return __builtin_shuffle(a, b, emulated::Int{2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31});
}
INSTRUCTION __m512d _mm512_unpacklo_pd(__m512d a, __m512d b) {
  return __builtin_shuffle(a, b, __m512i{0, 8, 2, 10, 4, 12, 6, 14});
}
INSTRUCTION __m512d _mm512_unpackhi_pd(__m512d a, __m512d b) {
  return __builtin_shuffle(a, b, __m512i{1, 9, 3, 11, 5, 13, 7, 15});
}
INSTRUCTION __m512i _mm512_unpacklo_epi16(__m512i a, __m512i b) { return emulated::interleave(a, b, 0); }
INSTRUCTION __m512i _mm512_unpackhi_epi16(__m512i a, __m512i b) { return emulated::interleave(a, b, 4); }
INSTRUCTION __m512i _mm512_permutexvar_epi64(__m512i index, __m512i v) { return __builtin_shuffle(v, index); }
INSTRUCTION __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int which) {
  const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);
  const auto pair = [&](int i) -> int64_t { return 2 * (which >> 2 * i & 3); };
  const __m512i lanes = {pair(0),     pair(0) + 1, pair(1),     pair(1) + 1,
                         pair(2) + 8, pair(2) + 9, pair(3) + 8, pair(3) + 9};
  return _mm512_castpd_ps(__builtin_shuffle(x, y, lanes));
}

// conversion

INSTRUCTION __m512d _mm512_cvtps_pd(__m256 v) { return __builtin_convertvector(v, __m512d); }
INSTRUCTION __m512i _mm512_cvtepu16_epi32(__m256i v) {
  return emulated::bits_of<__m512i>(__builtin_convertvector(emulated::bits_of<emulated::Short>(v), emulated::Bits));
}
INSTRUCTION __m256i _mm512_castsi512_si256(__m512i v) {
  return emulated::bits_of<__m256i>(emulated::half(emulated::bits_of<__m512>(v), 0));
}
INSTRUCTION __m256i _mm512_extracti64x4_epi64(__m512i v, int which) {
  return emulated::bits_of<__m256i>(emulated::half(emulated::bits_of<__m512>(v), which));
}
INSTRUCTION __m256i _mm512_cvtepi32_epi16(__m512i v) {  // the low halves
  return emulated::bits_of<__m256i>(__builtin_convertvector(emulated::bits_of<emulated::Bits>(v), emulated::Short));
}
INSTRUCTION __m512 _mm512_cvtph_ps(__m256i v) {
  __m128i halves[2];
  emulated::store(halves, v);
  return emulated::join(_mm256_cvtph_ps(halves[0]), _mm256_cvtph_ps(halves[1]));
}
INSTRUCTION __m256i _mm512_cvtps_ph(__m512 v, int) {  // to nearest even: no kernel rounds otherwise
  const __m128i halves[2] = {_mm256_cvtps_ph(emulated::half(v, 0), _MM_FROUND_TO_NEAREST_INT),
                             _mm256_cvtps_ph(emulated::half(v, 1), _MM_FROUND_TO_NEAREST_INT)};
  return emulated::load<__m256i>(halves);
}
// Rounds to nearest even regardless of MXCSR; flushes subnormals to zero and quiets NaNs.
LONG_INSTRUCTION __m256bh _mm512_cvtneps_pbh(__m512 v) {
  using emulated::Bits;
  const Bits bits = emulated::bits_of<Bits>(emulated::without_subnormal(v));
  const Bits rounded = bits + (0x7fff + (bits >> 16 & 1)), nan = bits | emulated::kQuiet;
  const Bits size = bits & ~emulated::kSign;
  const Bits upper = size > emulated::kInf ? nan : rounded;  // Inf is unchanged: its low bits are 0
  return emulated::bits_of<__m256bh>(__builtin_convertvector(upper >> 16, emulated::Short));
}
INSTRUCTION __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  const __m256bh halves[2] = {_mm512_cvtneps_pbh(low), _mm512_cvtneps_pbh(high)};
  return emulated::load<__m512bh>(halves);
}
// Two fused multiply-adds, odd elements first. Each rounds to nearest even and flushes subnormal inputs and outputs to
// zero, regardless of MXCSR (Intel's manual, VDPBF16PS).
LONG_INSTRUCTION __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  using emulated::without_subnormal;
  for (int which = 1; which >= 0; --which)
    sum = without_subnormal(_mm512_fmadd_ps(without_subnormal(emulated::widen(a, which)),
                                            without_subnormal(emulated::widen(b, which)), without_subnormal(sum)));
  return sum;
}

}  // namespace resnet_fused::cpu::avx512

#undef INSTRUCTION
#undef LONG_INSTRUCTION
