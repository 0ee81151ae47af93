// The compiled block_fwd kernels by element type. sm90/block_fwd.cu merges them into one kernel table.
#pragma once
#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/sm90/block_fwd.h"

namespace resnet_fused::cuda {

using BlockFwdTable = KernelTable<BlockFwdVariant, BlockFwdParams>;

BlockFwdTable block_fwd_f16();
BlockFwdTable block_fwd_bf16();

}  // namespace resnet_fused::cuda
