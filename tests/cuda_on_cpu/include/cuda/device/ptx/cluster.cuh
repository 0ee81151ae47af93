// The emulated twin of csrc/cuda/device/ptx/cluster.cuh.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions_cluster.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ uint32_t cluster_rank() { return cuda_on_cpu::cluster_rank(); }

__device__ __forceinline__ uint32_t mapa(uint32_t address, uint32_t rank) {
  return cuda_on_cpu::map_to_rank(address, rank);
}

__device__ __forceinline__ void cluster_arrive() { cuda_on_cpu::cluster_arrive(); }

__device__ __forceinline__ void cluster_wait() { cuda_on_cpu::cluster_wait(); }

__device__ __forceinline__ void mbarrier_arrive_cluster(uint32_t barrier) {
  cuda_on_cpu::mbarrier_arrive_cluster(barrier);
}

__device__ __forceinline__ void tma_load_multicast_2d(uint32_t destination, const TensorMap& map, uint32_t barrier,
                                                      int c0, int c1, uint16_t blocks) {
  cuda_on_cpu::tma_load_multicast(destination, map, barrier, {{c0, c1}}, 2, blocks);
}

}  // namespace resnet_fused::cuda::ptx
