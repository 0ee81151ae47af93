// The emulated twin of csrc/cuda/device/ptx/stmatrix.cuh.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions_sm90.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void stmatrix_x4(uint32_t row, const uint32_t (&s)[4]) {
  cuda_on_cpu::stmatrix_x4(row, s, false);
}

__device__ __forceinline__ void stmatrix_x4_trans(uint32_t row, const uint32_t (&s)[4]) {
  cuda_on_cpu::stmatrix_x4(row, s, true);
}

}  // namespace resnet_fused::cuda::ptx
