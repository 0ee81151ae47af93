// The compiled conv_fwd kernels of each element type, which sm80/conv_fwd.cu joins into one kernel table. Each function
// has its own file, so that they compile in parallel.
#pragma once
#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/sm80/conv_fwd.h"

namespace resnet_fused::cuda {

using ConvFwdTable = KernelTable<ConvFwdVariant, ConvFwdParams>;

ConvFwdTable conv_fwd_f16();
ConvFwdTable conv_fwd_bf16();
ConvFwdTable conv_fwd_tf32();

// Forward with batch statistics.
ConvFwdTable conv_stats_f16();
ConvFwdTable conv_stats_bf16();
ConvFwdTable conv_stats_tf32();

// Input gradients, with the sums that the next BatchNorm's backward pass needs.
ConvFwdTable conv_gradient_f16();
ConvFwdTable conv_gradient_bf16();
ConvFwdTable conv_gradient_tf32();

}  // namespace resnet_fused::cuda
