// The compiled convolution kernels of each element type. Each function has a file of its own, in instantiations/, so
// that they compile in parallel; the launchers join them into one table a family.
#pragma once
#include "cuda/kernels/conv.h"
#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/sm90/block_fwd.h"

namespace resnet_fused::cuda {

using ConvTable = KernelTable<ConvFwdVariant, ConvFwdParams>;
using BlockFwdTable = KernelTable<BlockFwdVariant, BlockFwdParams>;

ConvTable conv_fwd_f16();
ConvTable conv_fwd_bf16();
ConvTable conv_fwd_tf32();
ConvTable conv_stats_f16();  // with batch statistics
ConvTable conv_stats_bf16();
ConvTable conv_stats_tf32();
ConvTable conv_gradient_f16();  // input gradients, with the sums that the next BatchNorm's backward pass needs
ConvTable conv_gradient_bf16();
ConvTable conv_gradient_tf32();

ConvTable conv_sm90_f16();
ConvTable conv_sm90_bf16();
ConvTable conv_sm90_stats_f16();
ConvTable conv_sm90_stats_bf16();

ConvTable conv_rows_f16();
ConvTable conv_rows_bf16();

BlockFwdTable block_fwd_f16();
BlockFwdTable block_fwd_bf16();

}  // namespace resnet_fused::cuda
