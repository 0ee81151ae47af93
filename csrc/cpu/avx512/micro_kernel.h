// The register block: MR output pixels by NV * 16 output channels, accumulated over contiguous runs of the input.
// Everything here is static: files below avx512/ must not leave AVX-512 code in symbols that the linker could share
// with the rest of the library.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "cpu/direct.h"

namespace resnet_fused::cpu::avx512 {
namespace {

// One reduction step multiplies kPack broadcast channels of a pixel by kPack rows of 16 channels. kPart: steps per
// running sum, 0 for one sum over all.
struct Fp32 {
  using Elem = float;
  static constexpr int kPack = 1;
  static constexpr int kPart = 128;
  static inline __m512 broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static inline __m512 weights(const float* p) { return _mm512_loadu_ps(p); }
  static inline __m512 madd(__m512 x, __m512 w, __m512 acc) { return _mm512_fmadd_ps(x, w, acc); }
  static inline __m512 load(const float* p, __mmask16 m) { return _mm512_maskz_loadu_ps(m, p); }
  static inline void store(float* p, __m512 v, __mmask16 m) { _mm512_mask_storeu_ps(p, m, v); }
  static inline __m512 round(__m512 v) { return v; }
  static inline float value(float v) { return v; }
};

#ifdef __AVX512BF16__
struct Bf16 {
  using Elem = uint16_t;
  static constexpr int kPack = 2;
  static constexpr int kPart = 0;  // one running sum: the final rounding to bf16 is 65,000 times coarser
  static inline __m512 broadcast(const uint16_t* p) {
    int pair;
    __builtin_memcpy(&pair, p, 4);
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
  }
  static inline __m512 weights(const uint16_t* p) { return _mm512_castsi512_ps(_mm512_loadu_si512(p)); }
  static inline __m512 madd(__m512 x, __m512 w, __m512 acc) {
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_castps_si512(x), (__m512bh)_mm512_castps_si512(w));
  }
  static inline __m512 load(const uint16_t* p, __mmask16 m) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(m, p)), 16));
  }
  static inline void store(uint16_t* p, __m512 v, __mmask16 m) {
    _mm256_mask_storeu_epi16(p, m, (__m256i)_mm512_cvtneps_pbh(v));
  }
  static inline __m512 round(__m512 v) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(v)), 16));
  }
  static inline float value(uint16_t v) {
    const uint32_t bits = static_cast<uint32_t>(v) << 16;
    float f;
    __builtin_memcpy(&f, &bits, 4);
    return f;
  }
};
#endif

// The contiguous runs of a reduction: run i starts offset[i] elements after the pixel and takes `steps` steps.
struct Runs {
  const int64_t* offset;
  int count;
  int steps;
};

// acc[i][v] = sum over runs and steps of x[i * pixel_step + ...] * w[...]; w advances by NV * 16 * kPack per step.
//
// A long sum is split into parts of kPart steps, added up in memory: the rounding error of a running sum grows with its
// length, and a plain loop over 4,608 products has ten times the error of torch's own NCHW convolution.
// length, and a plain loop over 4,608 products loses ten times what torch's own NCHW convolution does.
template <typename A, int MR, int NV>
inline __attribute__((always_inline)) void accumulate(__m512 (&acc)[MR][NV], const typename A::Elem* x,
                                                      int64_t pixel_step, const Runs& runs, const typename A::Elem* w) {
  using Elem = typename A::Elem;
  alignas(64) float total[MR][NV][kLanes];
  bool parts = false;
  int since = 0;  // steps in acc
#pragma GCC unroll 14
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_setzero_ps();
  for (int i = 0; i < runs.count; ++i) {
    // Three pixels share a pointer: [p], [p + step] and [p + 2 step] are single x86 addresses, so 14 pixels need five
    // pointers and nothing spills.
    const Elem* p[(MR + 2) / 3];
    for (int g = 0; g < (MR + 2) / 3; ++g) p[g] = x + runs.offset[i] + 3 * g * pixel_step;
    for (int left = runs.steps; left > 0;) {
      if (A::kPart && since >= A::kPart) {
#pragma GCC unroll 14
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            if (parts) acc[m][v] = _mm512_add_ps(acc[m][v], _mm512_load_ps(total[m][v]));
            _mm512_store_ps(total[m][v], acc[m][v]);
            acc[m][v] = _mm512_setzero_ps();
          }
        parts = true;
        since = 0;
      }
      const int steps = A::kPart && left > A::kPart ? A::kPart : left;
      left -= steps;
      since += steps;
      for (int step = 0; step < steps; ++step) {
        __m512 wv[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) wv[v] = A::weights(w + v * kLanes * A::kPack);
#pragma GCC unroll 14
        for (int m = 0; m < MR; ++m) {
          const __m512 xv = A::broadcast(p[m / 3] + (m % 3) * pixel_step);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[m][v] = A::madd(xv, wv[v], acc[m][v]);
        }
        w += NV * kLanes * A::kPack;
#pragma GCC unroll 5
        for (int g = 0; g < (MR + 2) / 3; ++g) p[g] += A::kPack;
      }
    }
  }
  if (parts)
#pragma GCC unroll 14
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_add_ps(acc[m][v], _mm512_load_ps(total[m][v]));
}

inline __mmask16 lanes_left(int left) {
  return left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << (left > 0 ? left : 0)) - 1);
}

// Propagates NaN: max returns its second operand if either is NaN.
inline __m512 relu(__m512 v) { return _mm512_max_ps(_mm512_setzero_ps(), v); }

// 64-byte aligned scratch memory of a thread, grown as needed.
class Scratch {
 public:
  ~Scratch() { __builtin_free(p_); }
  void* get(size_t bytes) {
    if (bytes > size_) {
      __builtin_free(p_);
      p_ = nullptr, size_ = 0;
      const size_t size = (bytes + 4095) / 4096 * 4096;
      if (posix_memalign(&p_, 64, size)) p_ = nullptr, no_memory(size);
      size_ = size;
    }
    return p_;
  }

 private:
  void* p_ = nullptr;
  size_t size_ = 0;
};

}  // namespace
}  // namespace resnet_fused::cpu::avx512
