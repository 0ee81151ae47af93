// Instantiates the kernels of one element type: taking a launcher's address compiles its kernel.
#pragma once
#include <algorithm>
#include <utility>

#include "cuda/kernels/sm90/block_fwd.cuh"
#include "cuda/kernels/tables.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/tensor_map.h"

namespace resnet_fused::cuda {

// A step loads 64 elements of the GEMM's depth for every output channel; each CTA of a cluster loads its share of the
// output channels.
template <typename Config>
TensorMap map_of_block_weight(const void* weight) {
  TensorShape m;
  m.base = weight, m.dtype = Config::kDtype, m.rank = 2;
  m.size[0] = kBlockFwdTaps * Config::kChannels, m.size[1] = Config::kChannels;
  m.stride[1] = m.size[0] * size_of(Config::kDtype);
  TiledBox box;
  box.box[0] = kBlockFwdDepth, box.box[1] = Config::kChannels / Config::kCluster;
  box.swizzle = Swizzle::k128;
  return encode_tiled(m, box);
}

template <typename Config>
void launch_block_fwd_variant(const BlockFwdParams& p, const Queue& queue) {
  const BlockFwdTiling tiling = block_fwd_tiling(Config::kShape, p.h, p.w);
  const BlockFwdMaps maps{{map_of_block_weight<Config>(p.weight[0]), map_of_block_weight<Config>(p.weight[1])}};
  constexpr int32_t kSmem = block_fwd_smem(Config::kShape), kCluster = Config::kCluster;
  const int64_t blocks = (block_fwd_tiles(tiling, p.n) + kCluster - 1) / kCluster * kCluster;
  const int32_t most = block_fwd_most_blocks(Config::kShape, queue.sm_count);  // one CTA per SM
  const auto grid = static_cast<unsigned>(std::min<int64_t>(blocks, most));
  if constexpr (kCluster > 1)
    LAUNCH_CLUSTER(block_fwd_kernel<Config>, kCluster, dim3(grid), dim3(kBlockFwdThreads), kSmem, queue.stream, p,
                   tiling, maps);
  else
    LAUNCH_DEPENDENT(block_fwd_kernel<Config>, dim3(grid), dim3(kBlockFwdThreads), kSmem, queue, p, tiling, maps);
}

template <Dtype kDtype, int kShape>
void add_block_fwd(BlockFwdTable& all) {
  constexpr BlockFwdVariant kVariant{kDtype, kBlockFwdShapes[kShape].channels};
  if constexpr (COMPILES(kVariant))
    all.push_back({kVariant, &launch_block_fwd_variant<BlockFwdConfig<kDtype, kShape>>});
}

template <Dtype kDtype, int... kShape>
BlockFwdTable compile_block_fwd(std::integer_sequence<int, kShape...>) {
  BlockFwdTable all;
  (add_block_fwd<kDtype, kShape>(all), ...);
  return all;
}

template <Dtype kDtype>
BlockFwdTable compile_all_block_fwd() {
  constexpr int kShapes = sizeof(kBlockFwdShapes) / sizeof(kBlockFwdShapes[0]);
  return compile_block_fwd<kDtype>(std::make_integer_sequence<int, kShapes>());
}

}  // namespace resnet_fused::cuda
