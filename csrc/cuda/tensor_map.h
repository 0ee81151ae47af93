// TMA descriptors: a tensor's shape in global memory, and the box or pixels that one instruction moves.
// Host code encodes a map and passes it to the kernel as `const __grid_constant__ TensorMap`.
#pragma once
#include <cstdint>

#include "cuda/dtype.h"

namespace resnet_fused::cuda {

// How the 16-byte pieces of a row are permuted in shared memory. The value is the width in bytes, which is the most
// that a box's innermost extent may have; the pattern repeats every 8 * width bytes, and so a box is aligned.
enum class Swizzle : int32_t { kNone = 0, k32 = 32, k64 = 64, k128 = 128 };

constexpr int kMostTensorRank = 5;

// Dimension 0 is the innermost, its elements are adjacent. Sizes are in elements, strides in bytes, multiples of 16.
struct TensorShape {
  const void* base = nullptr;  // a multiple of 16
  Dtype dtype = Dtype::kFloat32;
  int32_t rank = 0;
  int64_t size[kMostTensorRank] = {1, 1, 1, 1, 1};
  int64_t stride[kMostTensorRank] = {};  // [0] is not read
};

// A load or store moves box[0] x box[1] x ... elements, every step[i]-th of dimension i. Outside the tensor a load
// writes zeros, and a store writes nothing.
struct TiledBox {
  int32_t box[kMostTensorRank] = {1, 1, 1, 1, 1};  // in the tensor, before step thins it out
  int32_t step[kMostTensorRank] = {1, 1, 1, 1, 1};
  Swizzle swizzle = Swizzle::kNone;
};

// Of an NHWC tensor (rank 4: C, W, H, N) a load moves `pixels` consecutive positions of a convolution's window, each
// `channels` wide: along W, then H, then N, in steps of step[]. Positions run from `lower` to size - 1 + `upper`, both
// ends included; the load's offsets choose the filter's tap.
struct Im2colBox {
  int32_t lower[2] = {}, upper[2] = {};  // W, H; lower is -padding, upper is padding - dilation * (filter - 1)
  int32_t channels = 0, pixels = 0;
  int32_t step[kMostTensorRank] = {1, 1, 1, 1, 1};  // the convolution's stride at 1 (W) and 2 (H)
  Swizzle swizzle = Swizzle::kNone;
};

// CUtensorMap, without cuda.h; CUDA 13 aligns it to 128 bytes, CUDA 12 to 64.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

// Throws std::runtime_error with the offending value where the hardware has no such map. Maps are kept and found again
// by everything that they are made of (tensor_map_cache.cpp): encoding one takes longer than launching a kernel.
TensorMap encode_tiled(const TensorShape& shape, const TiledBox& box);
TensorMap encode_im2col(const TensorShape& shape, const Im2colBox& box);

// The driver's part of it: makes a map anew.
TensorMap driver_tiled(const TensorShape& shape, const TiledBox& box);
TensorMap driver_im2col(const TensorShape& shape, const Im2colBox& box);

}  // namespace resnet_fused::cuda
