// The compiled block_fwd kernels by element type. sm90/block_fwd.cu merges them into one menu.
#pragma once
#include "cuda/menu.h"
#include "cuda/sm90/block_fwd.h"

namespace resnet_fused::cuda {

using BlockFwdMenu = Menu<BlockFwdVariant, BlockFwdParams>;

BlockFwdMenu block_fwd_f16();
BlockFwdMenu block_fwd_bf16();

}  // namespace resnet_fused::cuda
