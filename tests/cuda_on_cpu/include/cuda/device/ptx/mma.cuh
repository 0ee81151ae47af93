// The emulated twin of csrc/cuda/device/ptx/mma.cuh.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], uint32_t row) { cuda_on_cpu::ldmatrix_x4(d, row, false); }

__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&d)[4], uint32_t row) {
  cuda_on_cpu::ldmatrix_x4(d, row, true);
}

__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_on_cpu::mma_f16(d, a, b);
}

__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_on_cpu::mma_bf16(d, a, b);
}

__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  cuda_on_cpu::mma_tf32(d, a, b);
}

}  // namespace resnet_fused::cuda::ptx
