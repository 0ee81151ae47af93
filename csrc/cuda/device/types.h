// Plain structs that host code and kernels share. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "common/dtype.h"

namespace resnet_fused::cuda {

using resnet_fused::Dtype;

// size_of as a constant that device code can use too.
template <Dtype kDtype>
inline constexpr int kSizeOf = size_of(kDtype);

// A BatchNorm as kernels receive it is the module's own tensors: nothing is folded in advance, so nothing goes stale.
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

// The geometry of a convolution. Activations are NHWC, weights KRSC, all dense.
struct ConvShape {
  int32_t n = 0, h = 0, w = 0, c = 0;  // input
  int32_t k = 0, r = 1, s = 1;         // weight; r, s <= kConvFwdMostTaps
  int32_t p = 0, q = 0;                // output height and width
  int32_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dil_h = 1, dil_w = 1;
};

constexpr int32_t kConvFwdMostTaps = 16;  // per side: a 32-bit register holds a bit per filter row and column

// How the 16-byte chunks of a row are permuted in shared memory. The value is the width in bytes, the maximum of a
// box's innermost extent. The pattern repeats every 8 * width bytes; boxes are aligned to that.
enum class Swizzle : int32_t { kNone = 0, k32 = 32, k64 = 64, k128 = 128 };

// CUtensorMap without cuda.h. CUDA 13 aligns it to 128 bytes, CUDA 12 to 64.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

}  // namespace resnet_fused::cuda
