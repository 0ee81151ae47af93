// Predictions for PyTorch's convolution. Pure.
#pragma once
#include "cuda/plan/cost_model.h"

namespace resnet_fused::cuda {

// ns of cuDNN, modelled with our tiles and on Hopper larger ones too. torch_share covers faster instructions where the
// GPU has them. `extra_bytes`: that the kernel moves in addition to the convolution's.
double torch_convolution(const Model& model, const ConvShape& q, int64_t extra_bytes = 0);

// Bytes of inputs and outputs, and those that the passes around the convolutions write and read.
int64_t torch_bytes(const Problem& p);

}  // namespace resnet_fused::cuda
