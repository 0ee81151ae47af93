// The backward pass of act(bn(x)) where the batch's own statistics normalise. Pure: no torch, no CUDA.
#pragma once
#include "cuda/batch_norm.h"
#include "cuda/bn/bn_finish.h"

namespace resnet_fused::cuda {

// Where the ReLU passes the gradient: where its input is not <= 0, so NaN passes, as in torch.
enum class Mask : int32_t {
  kNone,       // no ReLU
  kRecompute,  // its input is bn(x)
  kOut,        // from out, the ReLU's output
};

// g: grad where the mask is open, else 0. All tensors dense, of one dtype and layout.
struct BnGradient {
  const void* grad = nullptr;
  const void* x = nullptr;
  const void* out = nullptr;  // null: none
  BatchNormVectors bn;        // mean and var are present
  bool relu = false;          // without out: the mask is recomputed
  BnShape shape;
};

inline Mask mask_of(const BnGradient& g) { return g.out ? Mask::kOut : g.relu ? Mask::kRecompute : Mask::kNone; }

// The sums of g and of g * xhat, xhat = (x - mean) / sqrt(var + eps).
struct BnBackwardReduceParams {
  BnGradient from;
  void* workspace = nullptr;  // bn_backward_reduce_workspace() bytes
  void* sum_g = nullptr;      // (channels), float32, or float64 of float64
  void* sum_g_xhat = nullptr;
  void* kept = nullptr;  // null, or the destination of g (needs out); overlaps no other
};

// to = gamma / sqrt(var + eps) * (g - sum_g / count - xhat * sum_g_xhat / count), without sums the factor and g alone.
struct BnBackwardParams {
  BnGradient from;
  ChannelVector sum_g, sum_g_xhat;  // absent: frozen statistics
  double count = 1;
  void* to = nullptr;  // overlaps no other
};

// What distinguishes one compiled kernel from another, of both.
struct BnGradientVariant {
  Dtype dtype;
  int32_t vector;  // elements an access: 16 bytes, or one element
  Layout layout;
  Mask mask;

  bool operator==(const BnGradientVariant& o) const {
    return dtype == o.dtype && vector == o.vector && layout == o.layout && mask == o.mask;
  }
};

// `to` is null where nothing of the tensors' size is written.
inline BnGradientVariant select_bn_gradient(const BnGradient& g, const void* to) {
  const auto addresses = reinterpret_cast<uintptr_t>(g.grad) | reinterpret_cast<uintptr_t>(g.x) |
                         reinterpret_cast<uintptr_t>(g.out) | reinterpret_cast<uintptr_t>(to);
  return {g.shape.dtype, vector_of(g.shape, addresses), g.shape.layout, mask_of(g)};
}

inline int64_t bn_backward_reduce_workspace(const BnBackwardReduceParams& p, int sm_count) {
  return finish_workspace(parts_of(Parts::kSums, p.from.shape, select_bn_gradient(p.from, p.kept).vector, sm_count));
}

constexpr uint32_t kBnBackwardBlocksPerSm = 8;

inline BnWalk walk_bn_backward(const BnShape& s, int vector, int sm_count) {
  return walk_activations(s, vector, kBnThreads, sm_count * kBnBackwardBlocksPerSm);
}

}  // namespace resnet_fused::cuda
