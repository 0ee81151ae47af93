// The geometry of a convolution. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda {

// Activations are NHWC, weights KRSC, all dense.
struct ConvShape {
  int32_t n = 0, h = 0, w = 0, c = 0;  // input
  int32_t k = 0, r = 1, s = 1;         // weight; r, s <= kConvFwdMostTaps
  int32_t p = 0, q = 0;                // output height and width
  int32_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dil_h = 1, dil_w = 1;
};

constexpr int32_t kConvFwdMostTaps = 16;  // per side: a 32-bit register holds a bit per filter row and column

}  // namespace resnet_fused::cuda
