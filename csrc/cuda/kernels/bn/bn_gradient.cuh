// g, the gradient of a ReLU's input: grad where the ReLU was open, else 0.
#pragma once
#include "cuda/device/tile/scale_shift.cuh"
#include "cuda/kernels/bn/bn_gradient.h"
#include "cuda/kernels/bn/grid_stride.cuh"

namespace resnet_fused::cuda {

template <Dtype kDtype, int kVector, Layout kLayout, Mask kMask_>
struct BnGradientConfig : BnConfig<kDtype, kVector, kLayout> {
  static constexpr Mask kMask = kMask_;
  static constexpr int kBatch = 2;  // independent accesses per thread and tensor, of two or three tensors
  static constexpr int kValues = 2 * BnConfig<kDtype, kVector, kLayout>::kChannels;  // sums per thread
  using Affine = ScaleShift<kDtype, BnConfig<kDtype, kVector, kLayout>::kChannels>;
};

// One access of each tensor.
template <typename Config>
struct GradientChunk {
  using Acc = typename Config::Acc;

  typename Config::Data grad, x, out;

  __device__ __forceinline__ void load(const BnGradient& from, uint64_t at) {
    grad.template load<Access::kReadOnly>(static_cast<const char*>(from.grad) + at);
    x.template load<Access::kReadOnly>(static_cast<const char*>(from.x) + at);
    if constexpr (Config::kMask == Mask::kOut)
      out.template load<Access::kReadOnly>(static_cast<const char*>(from.out) + at);
  }

  // g of element e. The mask matches the forward pass exactly: recomputing uses the same fma, and counts the ReLU as
  // closed where the forward pass stored 0.
  __device__ __forceinline__ Acc g(const typename Config::Affine& bn, int e) const {
    bool closed = false;
    if constexpr (Config::kMask == Mask::kOut) closed = out.get(e) <= Acc(0);
    if constexpr (Config::kMask == Mask::kRecompute)
      closed = bn.apply(x.get(e), Config::channel_of(e)) <= Acc(kVanishes<Config::kDtype>);
    return closed ? Acc(0) : grad.get(e);
  }
};

}  // namespace resnet_fused::cuda
