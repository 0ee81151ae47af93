// act(bn(conv(x)) + shortcut) in one kernel, on the tensor cores of sm_80 and later. docs/kernels/sm80_conv_fwd.md has
// the tiling and the shared memory layout.
#pragma once
#include <type_traits>

#include "cuda/device/ptx/grid.cuh"
#include "cuda/kernels/sm80/conv_epilogue.cuh"
#include "cuda/kernels/sm80/conv_gradient_sums.cuh"
#include "cuda/kernels/sm80/conv_mainloop.cuh"
#include "cuda/kernels/sm80/conv_moments.cuh"

namespace resnet_fused::cuda {

template <typename Config>
using EpilogueOf = std::conditional_t<
    has_moments(Config::kMode), MomentsEpilogue<Config>,
    std::conditional_t<has_gradient_sums(Config::kMode), GradientSumsEpilogue<Config>, AffineEpilogue<Config>>>;

// Main loop steps for a convolution's depth.
template <typename Config>
__device__ __forceinline__ int32_t steps_of(const ConvShape& shape) {
  const int32_t chunks = shape.r * shape.s * (shape.c / Config::kPerChunk);
  return (chunks + kRowChunks - 1) / kRowChunks;
}

// A block computes tile blockIdx.x of slice blockIdx.y. Neighbouring blocks share their pixels, the larger operand, so
// that all but the first find them in L2.
template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm) conv_fwd_kernel(const ConvFwdParams p) {
  DYNAMIC_SMEM(smem);
  const uint32_t ring = ptx::smem_address(smem);
  unsigned char* tables = smem + Config::kStages * Config::kStageBytes;
  const ChannelTable bn(tables, Config::kN);
  tables += Config::kN * 2 * sizeof(float);
  const ChannelTable projection_bn(tables, Config::kN);
  if constexpr (Config::kProjects) tables += Config::kN * 2 * sizeof(float);
  const ConvOperands& activated = Config::kProjectionHasPrologue ? p.projection : p.main;
  const ChannelTable pre(tables, activated.shape.c);

  const int32_t k = p.main.shape.k, tiles_n = (k + Config::kN - 1) / Config::kN;
  const int32_t m0 = blockIdx.x / tiles_n * Config::kM, n0 = blockIdx.x % tiles_n * Config::kN;
  const int32_t slice = blockIdx.y;

  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  // Half of the threads have no entry of these tables to fill and go on to the first copies, which hides the latency of
  // the loads. The main loop's barriers come before the epilogue reads the tables.
  bn.template fill<Config::kDtype>(p.main.bn, n0, Config::kN, k, threadIdx.x, Config::kThreads);
  if constexpr (Config::kProjects)
    projection_bn.template fill<Config::kDtype>(p.projection.bn, n0, Config::kN, k, threadIdx.x, Config::kThreads);
  if constexpr (Config::kHasPrologue) {
    const int32_t c = activated.shape.c;
    pre.template fill<Config::kDtype>(activated.pre, 0, c, c, threadIdx.x, Config::kThreads);
    ptx::bar_sync_all();  // the first step reads the table before the main loop's first barrier
  }

  using MainPrologue = std::conditional_t<Config::kMainHasPrologue, BnReluPrologue<Config>, NoPrologue>;
  using ProjectionPrologue = std::conditional_t<Config::kProjectionHasPrologue, BnReluPrologue<Config>, NoPrologue>;
  typename Config::Warp projected, main;
  const bool whole = p.splits == 1;
  if constexpr (Config::kProjects) {
    if (whole || slice == p.splits) {
      const int32_t steps = steps_of<Config>(p.projection.shape);
      multiply_tile<Config, ProjectionPrologue>(projected, p.projection, ring, pre, m0, n0, 0, steps);
    }
    if (!whole && slice == p.splits) return store_partial<Config>(projected, p, slice, smem, m0, n0);
  }
  const int32_t steps = steps_of<Config>(p.main.shape);
  const auto part = [&](int32_t i) { return static_cast<int32_t>(static_cast<int64_t>(steps) * i / p.splits); };
  multiply_tile<Config, MainPrologue>(main, p.main, ring, pre, m0, n0, part(slice), part(slice + 1));
  if constexpr (!leaves_parts(Config::kMode)) {
    if (!whole) return store_partial<Config>(main, p, slice, smem, m0, n0);
  }
  EpilogueOf<Config>()(main, projected, {p, smem, bn, projection_bn, m0, n0});
}

}  // namespace resnet_fused::cuda
