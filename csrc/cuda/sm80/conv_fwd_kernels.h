// The compiled conv_fwd kernels of each element type, which sm80/conv_fwd.cu joins into one menu. Each function has its
// own file, so that they compile in parallel.
#pragma once
#include "cuda/menu.h"
#include "cuda/sm80/conv_fwd.h"

namespace resnet_fused::cuda {

using ConvFwdMenu = Menu<ConvFwdVariant, ConvFwdParams>;

ConvFwdMenu conv_fwd_f16();
ConvFwdMenu conv_fwd_bf16();
ConvFwdMenu conv_fwd_tf32();

// Forward with batch statistics.
ConvFwdMenu conv_stats_f16();
ConvFwdMenu conv_stats_bf16();
ConvFwdMenu conv_stats_tf32();

// Input gradients, with the sums that the next BatchNorm's backward pass needs.
ConvFwdMenu conv_gradient_f16();
ConvFwdMenu conv_gradient_bf16();
ConvFwdMenu conv_gradient_tf32();

}  // namespace resnet_fused::cuda
