// conv_finish: the second kernel of a split-K convolution.
#pragma once
#include "cuda/kernels/sm80/conv_fwd.h"
#include "cuda/runtime/queue.h"

namespace resnet_fused::cuda {

// out = act(bn(sum of the partials) + shortcut). Slices are added in order, so results are bit-reproducible.
void launch_conv_finish(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue);

}  // namespace resnet_fused::cuda
