// Max-pooling on the host: parameters, variant selection, grid. NHWC. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/device/tile/fast_divmod.h"
#include "cuda/device/types.h"
#include "cuda/kernels/bn/grid_stride.h"

namespace resnet_fused::cuda {

// Rows or columns. pad <= kernel / 2, so every window contains an input pixel.
struct PoolAxis {
  int32_t in = 0, out = 0;
  int32_t kernel = 1, stride = 1, pad = 0;
};

struct PoolShape {
  Dtype dtype = Dtype::kFloat32;
  int32_t batch = 0, channels = 0;
  PoolAxis h, w;  // N * C * H * W < 2^31 for input and output
};

// The argmax of a window whose maximum does not pass the ReLU. Real positions are smaller.
constexpr uint32_t kNoArgmax = 255;

// out = max_pool2d(relu(bn(x))). `argmax`, unless null, receives each maximum's row * kernel width + column in its
// window.
struct BnPoolParams {
  const void* x = nullptr;
  BatchNormVectors bn;
  PoolShape shape;
  void* out = nullptr;
  void* argmax = nullptr;  // uint8; null in inference
};

// to = the gradient of bn(x): each element is the sum of grad over the windows whose argmax it is.
struct PoolBackwardParams {
  const void* grad = nullptr;
  const void* argmax = nullptr;
  PoolShape shape;
  void* to = nullptr;
};

// Identifies a compiled kernel, forward or backward.
struct PoolVariant {
  Dtype dtype;
  int32_t vector;  // elements per access: 16 bytes, or one element
  // Forward: 3 for 3x3 windows. Backward: 2 if no pixel is in more than 2x2 windows. Otherwise 0: any.
  int32_t window;
  bool argmax = true;  // forward: whether it is stored; backward: always true

  bool operator==(const PoolVariant& o) const {
    return dtype == o.dtype && vector == o.vector && window == o.window && argmax == o.argmax;
  }
};

// The input or output of the pooling, as activations.
inline BnShape pixels_of(const PoolShape& s, int32_t h, int32_t w) {
  return {s.dtype, Layout::kNHWC, s.batch, s.channels, h * w};
}
inline BnShape inputs_of(const PoolShape& s) { return pixels_of(s, s.h.in, s.w.in); }
inline BnShape outputs_of(const PoolShape& s) { return pixels_of(s, s.h.out, s.w.out); }

inline PoolVariant select_bn_pool(const BnPoolParams& p) {
  const auto addresses =
      reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.out) | reinterpret_cast<uintptr_t>(p.argmax);
  const int vector = vector_of(outputs_of(p.shape), addresses);
  const bool three = p.shape.h.kernel == 3 && p.shape.w.kernel == 3;
  return {p.shape.dtype, vector, vector > 1 && three ? 3 : 0, p.argmax != nullptr};
}

inline PoolVariant select_pool_backward(const PoolBackwardParams& p) {
  const auto addresses =
      reinterpret_cast<uintptr_t>(p.grad) | reinterpret_cast<uintptr_t>(p.argmax) | reinterpret_cast<uintptr_t>(p.to);
  const int vector = vector_of(inputs_of(p.shape), addresses);
  const auto two = [](const PoolAxis& a) { return (a.kernel - 1) / a.stride < 2; };
  return {p.shape.dtype, vector, vector > 1 && two(p.shape.h) && two(p.shape.w) ? 2 : 0};
}

constexpr uint32_t kPoolBlocksPerSm = 8;

// A thread owns the channels of one access and loops over pixels: output pixels in forward, input pixels in backward.
struct PoolLoop : GridStrideLoop {
  FastDivmod rows, columns;  // of the pixels looped over
  FastDivmod stride_h, stride_w;
};

inline PoolLoop pool_loop(const PoolShape& s, bool over_outputs, int vector, int sm_count) {
  PoolLoop loop{};
  static_cast<GridStrideLoop&>(loop) = loop_over_activations(over_outputs ? outputs_of(s) : inputs_of(s), vector,
                                                             kBnThreads, sm_count * kPoolBlocksPerSm);
  loop.rows = FastDivmod(over_outputs ? s.h.out : s.h.in);
  loop.columns = FastDivmod(over_outputs ? s.w.out : s.w.in);
  loop.stride_h = FastDivmod(s.h.stride), loop.stride_w = FastDivmod(s.w.stride);
  return loop;
}

}  // namespace resnet_fused::cuda
