// act(bn(conv3x3(x)) + residual) of 64 channels on Hopper. The filter stays in shared memory, and one input patch
// serves all three filter rows. docs/kernels/sm90_conv_rows.md has the tiling and the predictions.
#pragma once
#include "cuda/device/ptx/control.cuh"
#include "cuda/device/ptx/grid.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/kernels/sm90/conv_rows_roles.cuh"

namespace resnet_fused::cuda {

template <typename Config>
__global__ void __launch_bounds__(kConvRowsThreads, 1)
    conv_rows_kernel(const ConvFwdParams p, const __grid_constant__ ConvRowsMaps maps) {
  DYNAMIC_SMEM(memory);
  const uint32_t smem = ptx::smem_address(memory), group = threadIdx.x / 128;
  const ConvRowsBarriers<Config> barriers{smem + Config::kBarriers};
  if (threadIdx.x == 0) {
    for (int s = 0; s < Config::kStages; ++s) {
      ptx::mbarrier_init(barriers.full(s), 1);
      ptx::mbarrier_init(barriers.empty(s), 4);
    }
    for (int i = 0; i < kConvRowsConsumers; ++i) {
      ptx::mbarrier_init(barriers.order(i), 4);
      ptx::mbarrier_init(barriers.open(i), 1);
      ptx::mbarrier_init(barriers.staged(i), 4);
    }
    ptx::mbarrier_init(barriers.filter(), 1);
    ptx::fence_mbarrier_init();
  }
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  ptx::bar_sync_all();

  // Registers move from the producers to the consumers.
  if (group == kConvRowsConsumers) {
    ptx::setmaxnreg_dec<40>();
    if (threadIdx.x % 128 == 0) load_patches<Config>(p, maps, smem, barriers);
    if (threadIdx.x % 128 == 32) store_tiles<Config>(p, maps, smem, barriers);
  } else {
    ptx::setmaxnreg_inc<232>();
    consume_tiles<Config>(p, smem, group, barriers);
  }
}

}  // namespace resnet_fused::cuda
