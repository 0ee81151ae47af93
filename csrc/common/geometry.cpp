#include "common/geometry.h"

#include <algorithm>

namespace resnet_fused {

namespace {

constexpr int64_t kMost32 = std::numeric_limits<int32_t>::max(), kMost64 = std::numeric_limits<int64_t>::max();

void check_pair(const char* op, const char* name, IntView v, int64_t least, int64_t most) {
  const bool right = v.size() == 2 && std::min(v[0], v[1]) >= least && std::max(v[0], v[1]) <= most;
  if (right) return;
  if (v.size() == 2 && std::min(v[0], v[1]) >= least)
    fail(op, ": ", name, " is ", to_string(v), "; two integers of at most ", most, " expected");
  fail(op, ": ", name, " is ", to_string(v), "; two integers of at least ", least, " expected");
}

// Extents along one axis of the padded input and of the dilated kernel. False if they overflow 64 bits.
bool extents(int64_t in, int64_t kernel, int64_t padding, int64_t dilation, int64_t* padded, int64_t* reach) {
  return !__builtin_add_overflow(in, 2 * padding, padded) && !__builtin_mul_overflow(dilation, kernel - 1, reach) &&
         !__builtin_add_overflow(*reach, 1, reach);
}

}  // namespace

std::string to_string(IntView sizes) {
  std::string s = "[";
  for (size_t i = 0; i < sizes.size(); ++i) s += (i ? ", " : "") + std::to_string(sizes[i]);
  return s + "]";
}

void check_32bit_indexing(const char* op, const char* name, IntView sizes) {
  // Other code multiplies the remaining sizes of an empty tensor to count rows or pixels, so they must not overflow.
  const bool empty = std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  int64_t numel = 1;
  for (int64_t s : sizes) {
    RF_CHECK(s == 0 || numel <= (empty ? kMost64 : kMost32) / s, op, ": ", name, " of shape ", to_string(sizes),
             " has more than ", kMost32, " elements, past what the kernels index with 32 bits; split the batch");
    numel *= std::max<int64_t>(s, 1);
  }
}

Geometry check_geometry(const char* op, IntView x, IntView weight, IntView stride, IntView padding, IntView dilation,
                        int64_t groups) {
  check_pair(op, "stride", stride, 1, kMost64);
  check_pair(op, "padding", padding, 0, kMost64 / 2);
  check_pair(op, "dilation", dilation, 1, kMost64);
  const int64_t c = x[1], k = weight[0], cg = weight[1], r = weight[2], s = weight[3];
  RF_CHECK(groups >= 1, op, ": groups is ", groups, "; at least 1 expected");
  int64_t channels = 0;
  // torch's wording, which users search for
  RF_CHECK(!__builtin_mul_overflow(cg, groups, &channels) && channels == c, op, ": Given groups=", groups,
           ", weight of size ", to_string(weight), ", expected input", to_string(x), " to have ", channels,
           " channels, but got ", c, " channels instead; weight must be (K, C / groups, R, S), C being x's channels");
  RF_CHECK(k % groups == 0, op, ": Given groups=", groups, ", expected weight to be divisible by ", groups,
           " at dimension 0, but got weight of size ", to_string(weight),
           " instead; weight must be (K, C / groups, R, S) with K divisible by groups");
  RF_CHECK(r >= 1 && s >= 1 && c >= 1 && k >= 1, op, ": x of shape ", to_string(x), " and weight of shape ",
           to_string(weight), " leave nothing to convolve");
  check_32bit_indexing(op, "x", x);
  check_32bit_indexing(op, "weight", weight);

  Geometry g;
  for (int i = 0; i < 2; ++i) {
    int64_t padded = 0, reach = 0;
    const bool counts = extents(x[2 + i], weight[2 + i], padding[i], dilation[i], &padded, &reach);
    RF_CHECK(counts && reach <= padded, op, ": a ", r, "x", s, " kernel with dilation ", to_string(dilation), " is ",
             counts ? "larger than" : "past what 64 bits count over", " the input ", x[2], "x", x[3], " with padding ",
             to_string(padding), "; a kernel that fits into its padded input expected");
    g.padding[i] = padding[i];
    g.stride[i] = std::min(stride[i], padded);
    g.dilation[i] = std::min(dilation[i], padded);
    g.out[i] = conv_out(x[2 + i], weight[2 + i], g.stride[i], g.padding[i], g.dilation[i]);
  }
  check_32bit_indexing(op, "the output", {x[0], k, g.out[0], g.out[1]});
  return g;
}

Pair flipped_padding(const char* op, IntView grad, IntView weight, IntView padding, IntView dilation) {
  check_pair(op, "padding", padding, 0, kMost64 / 2);
  check_pair(op, "dilation", dilation, 1, kMost64);
  const int64_t r = weight[2], s = weight[3];
  RF_CHECK(weight[0] >= 1 && weight[1] >= 1 && r >= 1 && s >= 1, op, ": grad of shape ", to_string(grad),
           " and weight of shape ", to_string(weight), " leave nothing to convolve");
  Pair flipped;
  for (int i = 0; i < 2; ++i) {
    int64_t extent = 0, padded = 0;
    const bool counts = !__builtin_mul_overflow(dilation[i], weight[2 + i] - 1, &extent) &&
                        !__builtin_add_overflow(grad[2 + i], extent, &padded);
    RF_CHECK(counts, op, ": a ", r, "x", s, " kernel with dilation ", to_string(dilation),
             " is past what 64 bits count; a smaller dilation expected");
    RF_CHECK(padding[i] <= extent, op, ": padding is ", to_string(padding), ", more than the reach of a ", r, "x", s,
             " kernel with dilation ", to_string(dilation), "; use aten::convolution_backward");
    RF_CHECK(2 * padding[i] < padded, op, ": grad of shape ", to_string(grad), " and a ", r, "x", s,
             " kernel with padding ", to_string(padding), " leave an input without pixels; at least one expected");
    flipped[i] = extent - padding[i];
  }
  return flipped;
}

Dtype dtype_named(const char* op, const std::string& name) {
  for (const Dtype dtype : kDtypes)
    if (name == name_of(dtype)) return dtype;
  fail(op, ": dtype is ", name, "; float32, float16, bfloat16 or float64 expected");
}

void check_pool(const char* op, IntView sizes, const MaxPool& pool) {
  const auto& [kernel, stride, padding] = pool;
  check_pair(op, "pool_kernel", kernel, 1, kMost32);
  check_pair(op, "pool_stride", stride, 1, kMost32);
  check_pair(op, "pool_padding", padding, 0, kMost32);
  RF_CHECK(2 * padding[0] <= kernel[0] && 2 * padding[1] <= kernel[1], op, ": pool_padding ", to_string(padding),
           " is more than half of pool_kernel ", to_string(kernel));
  RF_CHECK(sizes[2] + 2 * padding[0] >= kernel[0] && sizes[3] + 2 * padding[1] >= kernel[1], op,
           ": a pooling window of ", to_string(kernel), " is larger than its input ", sizes[2], "x", sizes[3],
           " with padding ", to_string(padding));
  check_32bit_indexing(op, "the pooled output", pooled_sizes(sizes, pool));
}

Ints pooled_sizes(IntView sizes, const MaxPool& pool) {
  const auto& [kernel, stride, padding] = pool;
  return {sizes[0], sizes[1], conv_out(sizes[2], kernel[0], stride[0], padding[0], 1),
          conv_out(sizes[3], kernel[1], stride[1], padding[1], 1)};
}

}  // namespace resnet_fused
