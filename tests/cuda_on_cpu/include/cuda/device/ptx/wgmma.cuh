// The emulated twin of csrc/cuda/device/ptx/wgmma.cuh.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions_sm90.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void wgmma_fence() { cuda_on_cpu::wgmma_fence(); }

__device__ __forceinline__ void wgmma_commit_group() { cuda_on_cpu::wgmma_commit_group(); }

template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  cuda_on_cpu::wgmma_wait_group(kPending);
}

template <int kN>
__device__ __forceinline__ void wgmma_m64k16_f16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  cuda_on_cpu::wgmma({cuda_on_cpu::Half::kF16, kN, d, a, nullptr, b, accumulate});
}

template <int kN>
__device__ __forceinline__ void wgmma_m64k16_bf16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  cuda_on_cpu::wgmma({cuda_on_cpu::Half::kBF16, kN, d, a, nullptr, b, accumulate});
}

template <int kN>
__device__ __forceinline__ void wgmma_m64k16_f16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                                 bool accumulate) {
  cuda_on_cpu::wgmma({cuda_on_cpu::Half::kF16, kN, d, 0, a, b, accumulate});
}

template <int kN>
__device__ __forceinline__ void wgmma_m64k16_bf16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                                  bool accumulate) {
  cuda_on_cpu::wgmma({cuda_on_cpu::Half::kBF16, kN, d, 0, a, b, accumulate});
}

}  // namespace resnet_fused::cuda::ptx
