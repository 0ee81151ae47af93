// Backward pass of act(bn(x)), with batch or frozen statistics. Pure: no torch, no CUDA.
#pragma once
#include "cuda/device/types.h"
#include "cuda/kernels/bn/bn_finish.h"

namespace resnet_fused::cuda {

// Source of the ReLU's mask. The mask is open unless the ReLU's input is <= 0, so NaN passes, as in torch.
enum class Mask : int32_t {
  kNone,       // no ReLU
  kRecompute,  // from bn(x), its recomputed input
  kOut,        // from `out`, its stored output
};

// g = grad where the ReLU was open, else 0. All tensors are dense and share dtype and layout.
struct BnGradient {
  const void* grad = nullptr;
  const void* x = nullptr;
  const void* out = nullptr;  // null: none
  BatchNormVectors bn;        // mean and var are present
  bool relu = false;          // without `out`, recompute the mask
  BnShape shape;
};

inline Mask mask_of(const BnGradient& g) { return g.out ? Mask::kOut : g.relu ? Mask::kRecompute : Mask::kNone; }

// Sums of g and of g * xhat, where xhat = (x - mean) / sqrt(var + eps).
struct BnBackwardReduceParams {
  BnGradient from;
  void* workspace = nullptr;  // bn_backward_reduce_workspace() bytes
  void* sum_g = nullptr;      // (channels); float64 for float64 tensors, else float32
  void* sum_g_xhat = nullptr;
  void* masked_grad = nullptr;  // destination of g, or null; needs `out`; overlaps no other tensor
};

// to = gamma / sqrt(var + eps) * (g - sum_g / count - xhat * sum_g_xhat / count).
// Frozen statistics, without sums: to = gamma / sqrt(var + eps) * g.
struct BnBackwardParams {
  BnGradient from;
  ChannelVector sum_g, sum_g_xhat;  // absent for frozen statistics
  double count = 1;
  void* to = nullptr;  // overlaps no other tensor
};

// Identifies a compiled kernel of bn_backward_reduce or bn_backward.
struct BnGradientVariant {
  Dtype dtype;
  int32_t vector;  // elements per access: 16 bytes, or one element
  Layout layout;
  Mask mask;

  bool operator==(const BnGradientVariant& o) const {
    return dtype == o.dtype && vector == o.vector && layout == o.layout && mask == o.mask;
  }
};

// `to`: the output of the activations' size, or null if there is none.
inline BnGradientVariant select_bn_gradient(const BnGradient& g, const void* to) {
  const auto addresses = reinterpret_cast<uintptr_t>(g.grad) | reinterpret_cast<uintptr_t>(g.x) |
                         reinterpret_cast<uintptr_t>(g.out) | reinterpret_cast<uintptr_t>(to);
  return {g.shape.dtype, vector_of(g.shape, addresses), g.shape.layout, mask_of(g)};
}

inline int64_t bn_backward_reduce_workspace(const BnBackwardReduceParams& p, int sm_count) {
  return finish_workspace(
      parts_of(Parts::kSums, p.from.shape, select_bn_gradient(p.from, p.masked_grad).vector, sm_count));
}

constexpr uint32_t kBnBackwardBlocksPerSm = 8;

inline GridStrideLoop bn_backward_loop(const BnShape& s, int vector, int sm_count) {
  return loop_over_activations(s, vector, kBnThreads, sm_count * kBnBackwardBlocksPerSm);
}

}  // namespace resnet_fused::cuda
