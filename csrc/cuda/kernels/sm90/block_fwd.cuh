// An identity BasicBlock in one launch: the intermediate activation stays in shared memory.
// docs/kernels/sm90_block_fwd.md has the tiling, the warp roles and the predictions.
#pragma once
#include "cuda/device/ptx/control.cuh"
#include "cuda/device/ptx/grid.cuh"
#include "cuda/kernels/sm90/block_fwd_roles.cuh"

namespace resnet_fused::cuda {

template <typename Config>
__device__ __forceinline__ void sync_cluster() {
  if constexpr (Config::kCluster > 1) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  } else {
    ptx::bar_sync_all();
  }
}

template <typename Config>
__global__ void __launch_bounds__(kBlockFwdThreads, 1)
    block_fwd_kernel(const BlockFwdParams p, const BlockFwdTiling tiling, const __grid_constant__ BlockFwdMaps maps) {
  DYNAMIC_SMEM(memory);
  const uint32_t smem = ptx::smem_address(memory);
  const BlockFwdBarriers<Config> barriers{smem + Config::kBarriers};
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      ptx::mbarrier_init(barriers.weights(i), 1);
      if constexpr (!Config::kKeepsWeights)
        ptx::mbarrier_init(barriers.free(i), Config::kCluster * Config::kConsumers / 32);
    }
    for (int team = 0; team < Config::kTeams; ++team) {
      ptx::mbarrier_init(barriers.full(team), Config::kLoaders);
      ptx::mbarrier_init(barriers.empty(team), Config::kTeamThreads / 32);
    }
    ptx::fence_mbarrier_init();
  }
  // The products also read positions past a tile's last pixel, and ignore those columns. No load writes these
  // positions, so zero them once.
  const uint32_t zeros[4] = {};
  for (uint32_t at = Config::kPixels + threadIdx.x * kChunkBytes; at < Config::kBarriers;
       at += kBlockFwdThreads * kChunkBytes)
    ptx::st_shared_v4(smem + at, zeros);
  ptx::fence_proxy_async();
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  sync_cluster<Config>();

  // Registers move from the producers to the consumers.
  if (threadIdx.x < Config::kConsumers) {
    ptx::setmaxnreg_inc<232>();
    consume<Config>(p, tiling, smem, barriers);
  } else {
    ptx::setmaxnreg_dec<40>();
    const uint32_t loader = threadIdx.x - Config::kConsumers;
    if (loader < Config::kLoaders) load_patches<Config>(p, tiling, smem, loader, barriers);
    if (loader == Config::kLoaders)
      load_weights<Config>(maps, BlockFwdScheduler<Config>(tiling, p.n, 0).rounds(), smem, barriers);
  }
  // No CTA exits while another CTA of its cluster may still arrive at its barriers or write to its stages.
  if constexpr (Config::kCluster > 1) {
    ptx::bar_warp_sync(~0u);  // reconverge with the lane that loads weights
    sync_cluster<Config>();
  }
}

}  // namespace resnet_fused::cuda
