// Geometry of convolutions and poolings as plain numbers, validated before use.
#pragma once
#include <limits>

#include "common/torch_abi.h"

namespace resnet_fused {

// Stride, padding and dilation of a convolution, along height and width.
struct Geometry {
  Pair stride, padding, dilation, out;
};

// Throws std::runtime_error unless x (N, C, H, W) can be convolved with weight (K, C / groups, R, S), all sizes at
// least 0. Output sizes are exact; overflow is an error. A stride or dilation larger than the padded input is clamped
// to its size, which gives the same output.
Geometry check_geometry(const char* op, IntView x, IntView weight, IntView stride, IntView padding, IntView dilation,
                        int64_t groups);

// The padding of the convolution that computes an input gradient, filter extent - padding: of a convolution with stride
// 1 and this weight (K, C, R, S), whose output has grad's sizes. Throws if one is negative or the input has no pixels.
Pair flipped_padding(const char* op, IntView grad, IntView weight, IntView padding, IntView dilation);

// A max pool, along height and width. Views of an op's arguments.
struct MaxPool {
  IntView kernel, stride, padding;
};
// Checks its arguments by torch's rules.
void check_pool(const char* op, IntView sizes, const MaxPool& pool);
Ints pooled_sizes(IntView sizes, const MaxPool& pool);

void check_32bit_indexing(const char* op, const char* name, IntView sizes);

// Output sizes. The arguments must have passed a check above.
inline int64_t conv_out(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (in + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

std::string to_string(IntView sizes);

// "float32", ...; throws std::runtime_error for any other name.
Dtype dtype_named(const char* op, const std::string& name);

// Narrows v to 32 bits. The plan or an earlier check guarantees that it fits; throws if it does not.
inline int32_t narrow(int64_t v) {
  RF_CHECK(v >= std::numeric_limits<int32_t>::min() && v <= std::numeric_limits<int32_t>::max(), "resnet_fused: ", v,
           " does not fit into 32 bits, which a kernel counts with; please report this");
  return static_cast<int32_t>(v);
}

}  // namespace resnet_fused
