// A BatchNorm as kernels receive it: its own tensors, so that there are no folded weights to go stale.
#pragma once
#include <cstdint>

#include "cuda/dtype.h"

namespace resnet_fused::cuda {

// One value a channel, of any stride; data is null where the tensor is absent. dtype is float32 or that of the
// activations: mixed precision and its two ends. The host casts what is neither.
struct ChannelVector {
  const void* data = nullptr;
  int64_t stride = 0;  // elements
  Dtype dtype = Dtype::kFloat32;
};

// y -> y * scale + shift, scale = gamma / sqrt(var + eps), shift = beta + (bias - mean) * scale.
// No mean and var: no BatchNorm, scale = 1 and shift = bias. Absent gamma is 1, absent beta and bias are 0.
struct BatchNormVectors {
  ChannelVector gamma, beta, mean, var;
  ChannelVector bias;  // of the convolution before the BatchNorm
  double eps = 0;
};

}  // namespace resnet_fused::cuda
