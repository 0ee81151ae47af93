// conv_sm90_finish: the second kernel of stream-K.
#pragma once
#include "cuda/kernels/sm90/conv_sm90.h"
#include "cuda/runtime/queue.h"

namespace resnet_fused::cuda {

// out = act(bn(sum of a tile's units) + shortcut) for each stream-K tile. Units are added in order, so the result
// is bit-reproducible.
void launch_conv_sm90_finish(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue);

}  // namespace resnet_fused::cuda
