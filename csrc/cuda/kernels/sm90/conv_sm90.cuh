// act(bn(conv(x)) + shortcut) on Hopper: a persistent, warp-specialised kernel with TMA and wgmma.
// docs/kernels/sm90_conv_fwd.md has the tiling, the roles and the predictions.
#pragma once
#include "cuda/device/ptx/control.cuh"
#include "cuda/device/ptx/grid.cuh"
#include "cuda/kernels/sm90/conv_sm90_roles.cuh"

namespace resnet_fused::cuda {

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    conv_sm90_kernel(const ConvFwdParams p, const __grid_constant__ ConvSm90Maps maps) {
  DYNAMIC_SMEM(memory);
  const uint32_t smem = ptx::smem_address(memory), group = threadIdx.x / 128;
  const ConvSm90Barriers<Config> barriers{smem + Config::kBarriers};
  const ConvOperands& activated = Config::kProjectionHasPrologue ? p.projection : p.main;
  const ChannelTable table(memory + Config::kTable, activated.shape.c);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Config::kStages; ++i) {
      ptx::mbarrier_init(barriers.full(i), 1);
      ptx::mbarrier_init(barriers.ready(i), 128);
      ptx::mbarrier_init(barriers.empty(i), Config::kReaders);
    }
    for (int i = 0; i < kConvSm90Consumers; ++i) {
      ptx::mbarrier_init(barriers.open(i), 1);
      ptx::mbarrier_init(barriers.staged(i), 4);
      ptx::mbarrier_init(barriers.order(i), 4);
    }
    ptx::fence_mbarrier_init();
  }
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  if constexpr (Config::kHasPrologue) {
    const int32_t c = activated.shape.c;
    table.template fill<Config::kDtype>(activated.pre, 0, c, c, threadIdx.x, Config::kThreads);
  }
  ptx::bar_sync_all();

  // Registers move from the producers to the consumers.
  if (group == kConvSm90Consumers) {
    ptx::setmaxnreg_dec<Config::kHasPrologue ? 64 : 56>();
    if (threadIdx.x % 128 == 0) produce<Config>(p, maps, smem, barriers);
    if (threadIdx.x % 128 == 32) {
      if constexpr (Config::kPingpong)
        store_pingpong<Config>(p, maps, smem, barriers);
      else
        store<Config>(p, maps, smem, barriers);
    }
  } else if (group > kConvSm90Consumers) {
    if constexpr (Config::kHasPrologue) {
      ptx::setmaxnreg_dec<96>();
      prepare<Config>(p, table, smem, barriers);
    }
  } else {
    ptx::setmaxnreg_inc<Config::kHasPrologue ? 176 : 224>();
    consume<Config>(p, smem, group, barriers);
  }
}

}  // namespace resnet_fused::cuda
