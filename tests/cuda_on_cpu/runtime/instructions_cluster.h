// Run-time implementation of cluster instructions; see instructions.h.
#pragma once
#include <cstdint>

#include "runtime/instructions_sm90.h"

namespace cuda_on_cpu {

// cluster.cpp
uint32_t cluster_rank();
uint32_t map_to_rank(uint32_t address, uint32_t rank);

// cluster_barrier.cpp
void cluster_arrive();
void cluster_wait();

// mbarrier.cpp
void mbarrier_arrive_cluster(uint32_t address);

// tma.cpp
void tma_load_multicast(uint32_t destination, const resnet_fused::cuda::TensorMap& map, uint32_t barrier,
                        const Coordinates& at, int rank, uint16_t blocks);

}  // namespace cuda_on_cpu
