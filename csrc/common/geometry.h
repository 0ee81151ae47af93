// The geometry of convolutions and poolings in plain numbers, checked before anything is computed with them.
#pragma once
#include <limits>

#include "common/torch_abi.h"

namespace resnet_fused {

// What a convolution does along height and width.
struct Geometry {
  Pair stride, padding, dilation, out;
};

// Throws std::runtime_error unless x (N, C, H, W) can be convolved with weight (K, C / groups, R, S), all sizes at
// least 0. Output sizes never overflow: they are exact or an error. A stride or dilation beyond the padded input is
// clamped to its size, which gives the same output.
Geometry check_geometry(const char* op, IntView x, IntView weight, IntView stride, IntView padding, IntView dilation,
                        int64_t groups);

// Checks a pooling's arguments as torch's own pooling does.
void check_pool(const char* op, IntView sizes, const Ints& kernel, const Ints& stride, const Ints& padding);
Ints pooled_sizes(IntView sizes, const Ints& kernel, const Ints& stride, const Ints& padding);

void check_32bit_indexing(const char* op, const char* name, IntView sizes);

// Output sizes. The arguments must have passed a check above.
inline int64_t conv_out(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (in + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

std::string to_string(IntView sizes);

// v as 32 bits, which a plan or a check has guaranteed; throws if it does not fit.
inline int32_t narrow(int64_t v) {
  RF_CHECK(v >= std::numeric_limits<int32_t>::min() && v <= std::numeric_limits<int32_t>::max(), "resnet_fused: ", v,
           " does not fit into 32 bits, which a kernel counts with; please report this");
  return static_cast<int32_t>(v);
}

}  // namespace resnet_fused
