// The compiled conv_sm90 kernels by element type. sm90/conv_sm90.cu merges them into one kernel table. Each function
// has a file of its own, so that they compile in parallel.
#pragma once
#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/sm90/conv_sm90.h"

namespace resnet_fused::cuda {

using ConvSm90Table = KernelTable<ConvFwdVariant, ConvFwdParams>;

ConvSm90Table conv_sm90_f16();
ConvSm90Table conv_sm90_bf16();

// With statistics.
ConvSm90Table conv_sm90_stats_f16();
ConvSm90Table conv_sm90_stats_bf16();

}  // namespace resnet_fused::cuda
