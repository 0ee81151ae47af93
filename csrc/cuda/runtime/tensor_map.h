// TMA descriptors: a tensor's shape in global memory, and the box or pixels that one instruction moves.
// Host code encodes a map and passes it to the kernel as `const __grid_constant__ TensorMap`.
#pragma once
#include <cstdint>

#include "cuda/device/types.h"

namespace resnet_fused::cuda {

constexpr int kMostTensorRank = 5;

// Dimension 0 is the innermost and contiguous. Sizes are in elements; strides are in bytes, multiples of 16.
struct TensorShape {
  const void* base = nullptr;  // a multiple of 16
  Dtype dtype = Dtype::kFloat32;
  int32_t rank = 0;
  int64_t size[kMostTensorRank] = {1, 1, 1, 1, 1};
  int64_t stride[kMostTensorRank] = {};  // [0] is unused
};

// A load or store moves every step[i]-th element of dimension i in a box of box[0] x box[1] x ... Elements outside the
// tensor load as zero and are not stored.
struct TiledBox {
  int32_t box[kMostTensorRank] = {1, 1, 1, 1, 1};  // extents in the tensor, before step subsamples it
  int32_t step[kMostTensorRank] = {1, 1, 1, 1, 1};
  Swizzle swizzle = Swizzle::kNone;
};

// For an NHWC tensor (rank 4: C, W, H, N). A load moves `channels` channels of `pixels` consecutive positions of a
// convolution's window: along W, then H, then N, in steps of step[]. Positions range from `lower` to size - 1 +
// `upper`, inclusive. The load's offsets choose the filter tap.
struct Im2colBox {
  int32_t lower[2] = {}, upper[2] = {};  // W, H; lower is -padding, upper is padding - dilation * (filter - 1)
  int32_t channels = 0, pixels = 0;
  int32_t step[kMostTensorRank] = {1, 1, 1, 1, 1};  // the convolution's stride at 1 (W) and 2 (H)
  Swizzle swizzle = Swizzle::kNone;
};

// Throw std::runtime_error if the hardware does not support the map. Maps are cached by all their parameters
// (tensor_map_cache.cpp), because encoding one takes longer than launching a kernel.
TensorMap encode_tiled(const TensorShape& shape, const TiledBox& box);
TensorMap encode_im2col(const TensorShape& shape, const Im2colBox& box);

// Encode a map with the driver, without the cache.
TensorMap driver_tiled(const TensorShape& shape, const TiledBox& box);
TensorMap driver_im2col(const TensorShape& shape, const Im2colBox& box);

}  // namespace resnet_fused::cuda
