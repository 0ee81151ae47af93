// The register block: MR output pixels by NV registers of output channels, accumulated over contiguous runs of the
// input. A is an element type of avx2/vector.h or avx512/vector.h:
//   V        the registers
//   Elem     stores tensors
//   Operand  stores what is multiplied: Elem, or float if that is converted first
//   kPack    one reduction step multiplies this many broadcast channels of a pixel by as many rows of weights
//   kPart    steps per running sum, 0 for one sum over all
// Everything below simd/ is static: each instruction set has its own copies, which the linker must not merge.
#pragma once
#include <cstdint>
#include <cstdlib>

#include "cpu/direct.h"

namespace resnet_fused::cpu::simd {
namespace {

// The contiguous runs of a reduction: run i starts offset[i] elements after the pixel and takes `steps` steps.
struct Runs {
  const int64_t* offset;
  int count;
  int steps;
  // Operands that the caller reads next: each step prefetches the line at `next` into L2 and advances it by next_step
  // bytes.
  const char* next;
  int64_t next_step;
};

// Where the input of a register block's pixels is: W pixels in a row, then the next row.
struct Pixels {
  int64_t step, row_step;  // elements between neighbouring pixels, and between rows
};

// acc[i][v] = sum over runs and steps of x[pixel i + ...] * w[...]; w advances by NV * kLanes * kPack per step.
//
// A long sum is split into parts of kPart steps, added up in memory: the rounding error of a running sum grows with its
// length, and a plain loop over 4,608 products has ten times the error of torch's own NCHW convolution.
template <typename A, int MR, int NV, int W = MR>
inline __attribute__((always_inline)) void accumulate(typename A::V::Reg (&acc)[MR][NV], const typename A::Operand* x,
                                                      const Pixels& pixels, const Runs& runs,
                                                      const typename A::Operand* w) {
  using V = typename A::V;
  using Reg = typename V::Reg;
  alignas(64) float total[MR][NV][V::kLanes];
  bool parts = false;
  int since = 0;  // steps in acc
  const char* next = runs.next;
#pragma GCC unroll 14
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[m][v] = V::zero();
  for (int i = 0; i < runs.count; ++i) {
    // Three pixels share a pointer: [p], [p + step] and [p + 2 step] are single x86 addresses, so 14 pixels need five
    // or six pointers and nothing spills.
    constexpr int kPointers = (W + 2) / 3;  // of a row
    const typename A::Operand* p[MR / W * kPointers];
    for (int g = 0; g < MR / W * kPointers; ++g)
      p[g] = x + runs.offset[i] + g / kPointers * pixels.row_step + g % kPointers * 3 * pixels.step;
    for (int left = runs.steps; left > 0;) {
      if (A::kPart && since >= A::kPart) {
#pragma GCC unroll 14
        for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) {
            if (parts) acc[m][v] += V::load(total[m][v]);
            V::store(total[m][v], acc[m][v]);
            acc[m][v] = V::zero();
          }
        parts = true;
        since = 0;
      }
      const int steps = A::kPart && left > A::kPart ? A::kPart : left;
      left -= steps;
      since += steps;
      for (int step = 0; step < steps; ++step) {
        Reg wv[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) wv[v] = A::weights(w + v * V::kLanes * A::kPack);
#pragma GCC unroll 14
        for (int m = 0; m < MR; ++m) {
          const Reg xv = A::broadcast(p[m / W * kPointers + m % W / 3] + m % W % 3 * pixels.step);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) acc[m][v] = A::madd(xv, wv[v], acc[m][v]);
        }
        __builtin_prefetch(next, 0, 2);
        next += runs.next_step;
        w += NV * V::kLanes * A::kPack;
#pragma GCC unroll 6
        for (int g = 0; g < MR / W * kPointers; ++g) p[g] += A::kPack;
      }
    }
  }
  if (parts)
#pragma GCC unroll 14
    for (int m = 0; m < MR; ++m)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[m][v] += V::load(total[m][v]);
}

// Propagates NaN.
template <typename V>
inline typename V::Reg relu(typename V::Reg v) {
  return V::max(V::zero(), v);
}

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
}  // namespace resnet_fused::cpu::simd
