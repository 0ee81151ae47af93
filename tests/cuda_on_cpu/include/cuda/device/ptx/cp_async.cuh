// The emulated twin of csrc/cuda/device/ptx/cp_async.cuh.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void cp_async_cg_16(uint32_t destination, const void* source, bool valid) {
  cuda_on_cpu::cp_async(destination, source, 16, valid);
}

__device__ __forceinline__ void cp_async_commit_group() { cuda_on_cpu::cp_async_commit(); }

template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  cuda_on_cpu::cp_async_wait(kPending);
}

}  // namespace resnet_fused::cuda::ptx
