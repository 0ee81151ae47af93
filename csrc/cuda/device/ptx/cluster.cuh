// Thread block clusters (sm_90): distributed shared memory, cluster-wide barriers, multicast copies.
#pragma once
#include <cstdint>

#include "cuda/device/types.h"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace resnet_fused::cuda::ptx {

// The block's rank in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Maps an address in this block's shared memory to the same place in that of block `rank`, for the cluster instructions
// below.
__device__ __forceinline__ uint32_t mapa(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// Every thread of the cluster arrives once and waits once. After the wait, each thread sees all writes that preceded an
// arrival.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }

__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// mbarrier_arrive on a barrier of any block; mapa gives its address. Signals that this thread has finished reading. It
// does not make writes visible to other blocks: that needs .release.cluster here and .acquire.cluster in the wait,
// which compile to a GPU-wide fence at every arrival and an L1 invalidation at every wait.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// tma_load_2d to each block whose bit is set in `blocks`, at the same shared memory address in each. The bytes complete
// on each block's own barrier, also at the same address.
__device__ __forceinline__ void tma_load_multicast_2d(uint32_t destination, const TensorMap& map, uint32_t barrier,
                                                      int c0, int c1, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, "
      "{%3, %4}], [%2], %5;" ::"r"(destination),
      "l"(&map), "r"(barrier), "r"(c0), "r"(c1), "h"(blocks)
      : "memory");
}

}  // namespace resnet_fused::cuda::ptx

#endif
