// Max-pooling loops for training, NHWC. Plain pointers, as in bn_kernels.h.
#pragma once
#include <cstdint>

namespace resnet_fused::cpu {

struct PoolShape {
  int64_t channels, h, w, oh, ow;
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w;
};

// Stored instead of the argmax if the ReLU is closed at a window's maximum.
constexpr uint8_t kNoArgmax = 255;

template <typename T, typename Acc>
struct PoolKernels {
  // Rows [begin, end) of the output, counted over all images: out = max(relu(x * scale + shift)), and its argmax.
  void (*forward)(T* out, uint8_t* argmax, const T* x, const Acc* scale, const Acc* shift, const PoolShape& shape,
                  int64_t begin, int64_t end);
  // Rows [begin, end) of the input gradient, counted the same way.
  void (*backward)(T* to, const T* grad, const uint8_t* argmax, const PoolShape& shape, int64_t begin, int64_t end);
};

template <typename T, typename Acc>
const PoolKernels<T, Acc>& pool_kernels();

}  // namespace resnet_fused::cpu
