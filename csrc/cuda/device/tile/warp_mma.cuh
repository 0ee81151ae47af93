// A warp's part of an output tile: kRows x kCols accumulators, from two swizzled operand tiles in shared memory.
#pragma once
#include "cuda/device/ptx/math.cuh"
#include "cuda/device/ptx/mma.cuh"
#include "cuda/device/tile/swizzle.cuh"
#include "cuda/device/types.h"

namespace resnet_fused::cuda {

template <Dtype kDtype>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kDtype == Dtype::kFloat16)
    ptx::mma_m16n8k16_f16(d, a, b);
  else if constexpr (kDtype == Dtype::kBFloat16)
    ptx::mma_m16n8k16_bf16(d, a, b);
  else
    ptx::mma_m16n8k8_tf32(d, a, b);
}

// Tensor cores truncate the low 13 bits of a float32, which would bias every sum. Rounding first avoids that.
template <int kCount>
__device__ __forceinline__ void round_to_tf32(uint32_t (&words)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) words[i] = ptx::cvt_rna_tf32_f32(ptx::mov_f32_b32(words[i]));
}

// Accumulators of rows [row, row + kRows) of A times rows [col, col + kCols) of B. sum[i][j] is a 16x8 fragment, of
// which lane l holds columns l % 4 * 2 and l % 4 * 2 + 1 of row l / 4 (values 0, 1) and of row l / 4 + 8 (values 2, 3).
template <Dtype kDtype, int kRows, int kCols>
struct WarpMma {
  static constexpr int kFragmentRows = kRows / 16, kFragmentCols = kCols / 8;
  static constexpr int kSteps = kRowBytes / 32;  // an mma's depth is 32 bytes in every type
  static_assert(kRows % 16 == 0 && kCols % 16 == 0);

  float sum[kFragmentRows][kFragmentCols][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kFragmentRows; ++i)
#pragma unroll
      for (int j = 0; j < kFragmentCols; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
  }

  // ldmatrix only moves bytes: two columns of 16 bits or one of 32 bits load the same way.
  __device__ __forceinline__ void multiply(uint32_t a_tile, uint32_t row, uint32_t b_tile, uint32_t col,
                                           uint32_t lane) {
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      uint32_t a[kFragmentRows][4], b[kFragmentCols][2];
#pragma unroll
      for (int i = 0; i < kFragmentRows; ++i) {
        ptx::ldmatrix_x4(a[i], a_tile + swizzled(row + i * 16 + lane % 16, k * 2 + lane / 16));
        if constexpr (kDtype == Dtype::kFloat32) round_to_tf32(a[i]);
      }
#pragma unroll
      for (int j = 0; j < kFragmentCols; j += 2) {
        uint32_t two[4];
        ptx::ldmatrix_x4(two, b_tile + swizzled(col + j * 8 + lane % 8 + lane / 16 * 8, k * 2 + lane / 8 % 2));
        if constexpr (kDtype == Dtype::kFloat32) round_to_tf32(two);
        b[j][0] = two[0], b[j][1] = two[1], b[j + 1][0] = two[2], b[j + 1][1] = two[3];
      }
#pragma unroll
      for (int i = 0; i < kFragmentRows; ++i)
#pragma unroll
        for (int j = 0; j < kFragmentCols; ++j) mma<kDtype>(sum[i][j], a[i], b[j]);
    }
  }
};

}  // namespace resnet_fused::cuda
