// The compiled conv_fwd kernels of each element type, which sm80/conv_fwd.cu makes one menu of. A file each, so that
// they compile side by side.
#pragma once
#include "cuda/menu.h"
#include "cuda/sm80/conv_fwd.h"

namespace resnet_fused::cuda {

using ConvFwdMenu = Menu<ConvFwdVariant, ConvFwdParams>;

ConvFwdMenu conv_fwd_f16();
ConvFwdMenu conv_fwd_bf16();
ConvFwdMenu conv_fwd_tf32();

// With statistics.
ConvFwdMenu conv_stats_f16();
ConvFwdMenu conv_stats_bf16();
ConvFwdMenu conv_stats_tf32();

// Gradients, with the sums of the BatchNorm that comes next.
ConvFwdMenu conv_gradient_f16();
ConvFwdMenu conv_gradient_bf16();
ConvFwdMenu conv_gradient_tf32();

}  // namespace resnet_fused::cuda
