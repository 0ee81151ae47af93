// Blocks of a cluster (sm_90): their shared memories as one, barriers of each other, copies to several at once.
#pragma once
#include <cstdint>

#include "cuda/tensor_map.h"

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace resnet_fused::cuda::ptx {

// The block's number in its cluster.
__device__ __forceinline__ uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// An address of this block's shared memory, in that of block `rank`: for the instructions below that say cluster.
__device__ __forceinline__ uint32_t mapa(uint32_t address, uint32_t rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// Every thread of the cluster arrives once, and waits once: then what any did before is seen by all.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }

__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// mbarrier_arrive for a barrier of any block, as mapa gives its address. It says that this thread is done with what it
// has read; it shows another block no writes. That would take .release.cluster and a wait with .acquire.cluster, which
// are a fence of the whole GPU at every arrival and an invalidation of L1 at every wait.
__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// tma_load_2d to each block whose bit is set in `blocks`: at the same address of its shared memory, counted at its
// own barrier of the same address.
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
