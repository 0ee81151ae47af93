// The emulated twin of csrc/cuda/device/ptx/mbarrier.cuh.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions_sm90.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t count) {
  cuda_on_cpu::mbarrier_init(barrier, count);
}

__device__ __forceinline__ void mbarrier_inval(uint32_t barrier) { cuda_on_cpu::mbarrier_inval(barrier); }

__device__ __forceinline__ void fence_mbarrier_init() { cuda_on_cpu::fence_mbarrier_init(); }

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) { cuda_on_cpu::mbarrier_arrive(barrier, 0); }

__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  cuda_on_cpu::mbarrier_arrive(barrier, bytes);
}

__device__ __forceinline__ void mbarrier_wait_parity(uint32_t barrier, uint32_t parity) {
  cuda_on_cpu::mbarrier_wait_parity(barrier, parity);
}

}  // namespace resnet_fused::cuda::ptx
