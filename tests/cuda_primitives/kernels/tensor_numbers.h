// Reads tensor maps from a call's numbers; ../tensors.py writes them in the same order.
#pragma once
#include "call.h"
#include "cuda/runtime/tensor_map.h"

namespace cuda_primitives {

using resnet_fused::cuda::Im2colBox;
using resnet_fused::cuda::TensorMap;
using resnet_fused::cuda::TensorShape;
using resnet_fused::cuda::TiledBox;

// Reads a call's numbers in order.
class Numbers {
 public:
  explicit Numbers(const Call& call) : next_(call.numbers) {}
  int64_t take() { return *next_++; }
  int32_t take32() { return static_cast<int32_t>(take()); }

 private:
  const int64_t* next_;
};

TensorShape take_shape(Numbers& numbers, const void* base);
TensorMap take_tiled(Numbers& numbers, const void* base);   // shape, box, step, swizzle
TensorMap take_im2col(Numbers& numbers, const void* base);  // shape, lower, upper, channels, pixels, step, swizzle

}  // namespace cuda_primitives
