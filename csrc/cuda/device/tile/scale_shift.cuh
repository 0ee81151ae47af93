// BatchNorm as y * scale + shift for the kCount consecutive channels of one thread, in registers.
#pragma once
#include "cuda/device/tile/element.cuh"
#include "cuda/device/types.h"

namespace resnet_fused::cuda {

template <Dtype kDtype, typename Acc, int kCount>
__device__ __forceinline__ void read_channels_as(Acc (&out)[kCount], const ChannelVector& v, int first) {
  const char* address = static_cast<const char*>(v.data) + first * v.stride * kSizeOf<kDtype>;
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    out[i] = static_cast<Acc>(load_element<kDtype, Access::kReadOnly>(address + i * v.stride * kSizeOf<kDtype>));
}

// A vector has x's dtype or float32; `absent` stands for a missing one. The branch is uniform across the grid and
// outside the loop over channels, so that all loads of a vector are in flight together.
template <Dtype kDtype, typename Acc, int kCount>
__device__ __forceinline__ void read_channels(Acc (&out)[kCount], const ChannelVector& v, int first, Acc absent) {
  if (!v.data) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out[i] = absent;
  } else if (kDtype == Dtype::kFloat32 || v.dtype == Dtype::kFloat32) {
    read_channels_as<Dtype::kFloat32>(out, v, first);
  } else {
    read_channels_as<kDtype>(out, v, first);
  }
}

template <Dtype kDtype, int kCount>
struct ScaleShift {
  using Acc = typename Arithmetic<kDtype>::Type;

  Acc scale[kCount], shift[kCount];

  __device__ __forceinline__ ScaleShift(const BatchNormVectors& bn, int first) {
    read_channels<kDtype>(shift, bn.bias, first, Acc(0));
    if (!bn.mean.data) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) scale[i] = Acc(1);
      return;
    }
    Acc gamma[kCount], beta[kCount], mean[kCount], var[kCount];
    read_channels<kDtype>(gamma, bn.gamma, first, Acc(1));
    read_channels<kDtype>(beta, bn.beta, first, Acc(0));
    read_channels<kDtype>(mean, bn.mean, first, Acc(0));
    read_channels<kDtype>(var, bn.var, first, Acc(1));
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      scale[i] = gamma[i] * ptx::rcp_rn(ptx::sqrt_rn(var[i] + static_cast<Acc>(bn.eps)));
      shift[i] = ptx::fma_rn(shift[i] - mean[i], scale[i], beta[i]);
    }
  }

  __device__ __forceinline__ Acc apply(Acc y, int i) const { return ptx::fma_rn(y, scale[i], shift[i]); }
};

}  // namespace resnet_fused::cuda
