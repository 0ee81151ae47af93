// The emulated twin of csrc/cuda/device/ptx/sync.cuh.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void bar_sync_all() { cuda_on_cpu::barrier_sync_all(); }

__device__ __forceinline__ void bar_sync(int id, int threads) { cuda_on_cpu::barrier_sync(id, threads); }

__device__ __forceinline__ void bar_arrive(int id, int threads) { cuda_on_cpu::barrier_arrive(id, threads); }

__device__ __forceinline__ void bar_warp_sync(uint32_t lanes) { cuda_on_cpu::warp_sync(lanes); }

__device__ __forceinline__ uint32_t shfl_bfly(uint32_t lanes, uint32_t v, uint32_t by) {
  return cuda_on_cpu::shuffle_xor(lanes, v, by);
}

__device__ __forceinline__ uint32_t shfl_idx(uint32_t lanes, uint32_t v, uint32_t from) {
  return cuda_on_cpu::shuffle_index(lanes, v, from);
}

}  // namespace resnet_fused::cuda::ptx
