// The explicit instantiations for one element type: naming a launcher compiles its kernel.
#pragma once
#include <algorithm>
#include <utility>

#include "cuda/launch.h"
#include "cuda/sm90/block_fwd.cuh"
#include "cuda/sm90/block_fwd_kernels.h"

namespace resnet_fused::cuda {

// A step loads 64 of the depth of every output channel.
template <typename Config>
TensorMap map_of_block_weight(const void* weight) {
  TensorShape m;
  m.base = weight, m.dtype = Config::kDtype, m.rank = 2;
  m.size[0] = kBlockFwdTaps * Config::kChannels, m.size[1] = Config::kChannels;
  m.stride[1] = m.size[0] * size_of(Config::kDtype);
  TiledBox box;
  box.box[0] = kBlockFwdDepth, box.box[1] = Config::kChannels;
  box.swizzle = Swizzle::k128;
  return encode_tiled(m, box);
}

template <typename Config>
void launch_block_fwd_variant(const BlockFwdParams& p, const Queue& queue) {
  const BlockFwdTiling tiling = block_fwd_tiling(Config::kShape, p.h, p.w);
  const BlockFwdMaps maps{{map_of_block_weight<Config>(p.weight[0]), map_of_block_weight<Config>(p.weight[1])}};
  const int64_t tiles = block_fwd_tiles(tiling, p.n);
  const auto grid = static_cast<unsigned>(std::min<int64_t>(tiles, queue.sm_count));  // one block fills an SM
  LAUNCH_DEPENDENT(block_fwd_kernel<Config>, dim3(grid), dim3(kBlockFwdThreads), block_fwd_smem(Config::kShape), queue,
                   p, tiling, maps);
}

template <Dtype kDtype, int... kShape>
std::vector<CompiledBlockFwd> compile_block_fwd(std::integer_sequence<int, kShape...>) {
  return {{{kDtype, kBlockFwdShapes[kShape].channels}, &launch_block_fwd_variant<BlockFwdConfig<kDtype, kShape>>}...};
}

template <Dtype kDtype>
std::vector<CompiledBlockFwd> compile_all_block_fwd() {
  constexpr int kShapes = sizeof(kBlockFwdShapes) / sizeof(kBlockFwdShapes[0]);
  return compile_block_fwd<kDtype>(std::make_integer_sequence<int, kShapes>());
}

}  // namespace resnet_fused::cuda
