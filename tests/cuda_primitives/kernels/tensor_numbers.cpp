#include "tensor_numbers.h"

namespace cuda_primitives {

using resnet_fused::cuda::Dtype;
using resnet_fused::cuda::Swizzle;

TensorShape take_shape(Numbers& numbers, const void* base) {
  TensorShape s;
  s.base = base;
  s.dtype = static_cast<Dtype>(numbers.take32());
  s.rank = numbers.take32();
  for (int64_t& size : s.size) size = numbers.take();
  for (int64_t& stride : s.stride) stride = numbers.take();
  return s;
}

TensorMap take_tiled(Numbers& numbers, const void* base) {
  const TensorShape shape = take_shape(numbers, base);
  TiledBox b;
  for (int32_t& extent : b.box) extent = numbers.take32();
  for (int32_t& step : b.step) step = numbers.take32();
  b.swizzle = static_cast<Swizzle>(numbers.take32());
  return encode_tiled(shape, b);
}

TensorMap take_im2col(Numbers& numbers, const void* base) {
  const TensorShape shape = take_shape(numbers, base);
  Im2colBox b;
  for (int32_t& corner : b.lower) corner = numbers.take32();
  for (int32_t& corner : b.upper) corner = numbers.take32();
  b.channels = numbers.take32();
  b.pixels = numbers.take32();
  for (int32_t& step : b.step) step = numbers.take32();
  b.swizzle = static_cast<Swizzle>(numbers.take32());
  return encode_im2col(shape, b);
}

}  // namespace cuda_primitives
