// The compiled sm90 kernels of each element type, which sm90/conv_sm90.cu makes one menu of. A file each, so that they
// compile side by side.
#pragma once
#include "cuda/menu.h"
#include "cuda/sm90/conv_sm90.h"

namespace resnet_fused::cuda {

using ConvSm90Menu = Menu<ConvFwdVariant, ConvFwdParams>;

ConvSm90Menu conv_sm90_f16();
ConvSm90Menu conv_sm90_bf16();

// With statistics.
ConvSm90Menu conv_sm90_stats_f16();
ConvSm90Menu conv_sm90_stats_bf16();

}  // namespace resnet_fused::cuda
