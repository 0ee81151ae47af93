// A cluster of two blocks: in every step, each multicasts half of the bytes to both and frees the stage in both
// (sm_90).
#include "cuda/device/ptx/cluster.cuh"

#include "call.h"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/mbarrier.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/runtime/launch.h"
#include "tensor_numbers.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

constexpr uint32_t kBlocks = 2, kHalfBytes = 512, kStageBytes = kBlocks * kHalfBytes, kChunks = kStageBytes / 16;
constexpr uint32_t kFull = kStageBytes, kFree = kFull + 8, kBytes = kFree + 8;
constexpr int kRowsOfHalf = 8;

// out: for every step, the stage as seen by the first block, then by the second with its 16-byte chunks reversed.
__global__ void __launch_bounds__(32)
    cluster_ring_kernel(const __grid_constant__ TensorMap map, uint32_t steps, char* out) {
  DYNAMIC_SMEM(smem);
  const uint32_t base = ptx::smem_address(smem), lane = threadIdx.x, rank = ptx::cluster_rank();
  const uint32_t full = base + kFull, free = base + kFree;
  if (lane == 0) {
    ptx::mbarrier_init(full, 1);
    ptx::mbarrier_init(free, kBlocks * 32);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
  for (uint32_t step = 0; step < steps; ++step) {
    if (lane == 0) {
      ptx::mbarrier_wait_parity(free, step % 2 ^ 1);
      ptx::mbarrier_arrive_expect_tx(full, kStageBytes);
      ptx::tma_load_multicast_2d(base + rank * kHalfBytes, map, full, 0,
                                 static_cast<int>(step * kBlocks + rank) * kRowsOfHalf, (1 << kBlocks) - 1);
    }
    ptx::mbarrier_wait_parity(full, step % 2);
    for (uint32_t i = lane; i < kChunks; i += 32) {
      uint32_t r[4];
      ptx::ld_shared_v4(r, base + i * 16);
      const uint32_t place = rank == 0 ? i : kChunks - 1 - i;
      ptx::st_global_v4(out + ((step * kBlocks + rank) * kChunks + place) * 16, r);
    }
    ptx::bar_warp_sync(~0u);
    for (uint32_t to = 0; to < kBlocks; ++to) ptx::mbarrier_arrive_cluster(ptx::mapa(free, to));
  }
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

// buffers: tensor, out; numbers: map, steps
void cluster_ring(const Call& c) {
  Numbers numbers(c);
  const TensorMap map = take_tiled(numbers, c.in(0));
  const auto steps = static_cast<uint32_t>(numbers.take());
  LAUNCH_CLUSTER(cluster_ring_kernel, kBlocks, kBlocks, 32, static_cast<int>(kBytes), nullptr, map, steps,
                 static_cast<char*>(c.out(1)));
}

const Primitive registered[] = {{"cluster_ring", cluster_ring}};

}  // namespace
}  // namespace cuda_primitives
