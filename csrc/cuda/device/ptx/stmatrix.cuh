// Stores a warp's fragments to shared memory (sm_90): the inverse of ldmatrix.
#pragma once
#include <cstdint>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace resnet_fused::cuda::ptx {

// Stores four 8x8 matrices of 16-bit elements. Lane 8 i + j passes the address of row j (16 bytes) of matrix i.
__device__ __forceinline__ void stmatrix_x4(uint32_t row, const uint32_t (&s)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(s[0]), "r"(s[1]),
               "r"(s[2]), "r"(s[3])
               : "memory");
}

__device__ __forceinline__ void stmatrix_x4_trans(uint32_t row, const uint32_t (&s)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(s[0]),
               "r"(s[1]), "r"(s[2]), "r"(s[3])
               : "memory");
}

}  // namespace resnet_fused::cuda::ptx

#endif
