// A BatchNorm as kernels receive it: the module's own tensors. Nothing is folded in advance, so nothing goes stale.
#pragma once
#include <cstdint>

#include "cuda/device/dtype.h"

namespace resnet_fused::cuda {

// A tensor of one value per channel, with any stride. data is null if the tensor is absent. dtype is float32 or the
// activations' dtype; the host casts any other dtype.
struct ChannelVector {
  const void* data = nullptr;
  int64_t stride = 0;  // elements
  Dtype dtype = Dtype::kFloat32;
};

// y -> y * scale + shift, scale = gamma / sqrt(var + eps), shift = beta + (bias - mean) * scale.
// Without mean and var there is no BatchNorm: scale = 1, shift = bias. An absent gamma is 1, an absent beta or bias 0.
struct BatchNormVectors {
  ChannelVector gamma, beta, mean, var;
  ChannelVector bias;  // of the convolution before the BatchNorm
  double eps = 0;
};

}  // namespace resnet_fused::cuda
