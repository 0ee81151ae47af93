// The compiled block_fwd kernels of each element type, which sm90/block_fwd.cu makes one menu of.
#pragma once
#include <vector>

#include "cuda/queue.h"
#include "cuda/sm90/block_fwd.h"

namespace resnet_fused::cuda {

struct CompiledBlockFwd {
  BlockFwdVariant variant;
  void (*launch)(const BlockFwdParams&, const Queue&);
};

std::vector<CompiledBlockFwd> block_fwd_f16();
std::vector<CompiledBlockFwd> block_fwd_bf16();

}  // namespace resnet_fused::cuda
