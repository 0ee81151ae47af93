// Block and warp barriers, and warp shuffles.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda::ptx {

// Barrier for all threads of the block.
__device__ __forceinline__ void bar_sync_all() { asm volatile("barrier.cta.sync 0;" ::: "memory"); }

// Waits at barrier `id` (1 to 15) until `threads` threads, a multiple of 32, have arrived.
__device__ __forceinline__ void bar_sync(int id, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Arrives at barrier `id` without waiting.
__device__ __forceinline__ void bar_arrive(int id, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void bar_warp_sync(uint32_t lanes) {
  asm volatile("bar.warp.sync %0;" ::"r"(lanes) : "memory");
}

// v of lane (own lane ^ by).
__device__ __forceinline__ uint32_t shfl_bfly(uint32_t lanes, uint32_t v, uint32_t by) {
  uint32_t d;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, %3;" : "=r"(d) : "r"(v), "r"(by), "r"(lanes));
  return d;
}

// v of lane `from`.
__device__ __forceinline__ uint32_t shfl_idx(uint32_t lanes, uint32_t v, uint32_t from) {
  uint32_t d;
  asm volatile("shfl.sync.idx.b32 %0, %1, %2, 0x1f, %3;" : "=r"(d) : "r"(v), "r"(from), "r"(lanes));
  return d;
}

}  // namespace resnet_fused::cuda::ptx
