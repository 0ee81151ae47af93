// Addresses of a thread's items.
#pragma once
#include "cuda/device/tile/element.cuh"
#include "cuda/kernels/bn/grid_stride.h"

namespace resnet_fused::cuda {

// Base configuration of kernels over activations.
template <Dtype kDtype_, int kVector_, Layout kLayout_>
struct BnConfig {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr int kVector = kVector_;
  static constexpr Layout kLayout = kLayout_;

  static constexpr int kThreads = kBnThreads;
  static constexpr int kChannels = kLayout == Layout::kNHWC ? kVector : 1;  // per thread
  using Acc = typename Arithmetic<kDtype>::Type;
  using Data = Chunk<kDtype, kVector>;

  static_assert(kVector == 1 || kVector * kSizeOf<kDtype> == 16, "an access is one element or 16 bytes");
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);

  // Index, among the thread's channels, of the channel of element e of an access.
  __device__ __forceinline__ static constexpr int channel_of(int e) { return kChannels == 1 ? 0 : e; }
};

// Bytes from the start of the tensor to item i of lane `lane`.
template <typename Config>
__device__ __forceinline__ uint64_t offset_of(const GridStrideLoop& w, uint32_t lane, uint32_t i) {
  uint32_t access;
  if constexpr (Config::kLayout == Layout::kNHWC)
    access = i * w.all_lanes + lane;
  else
    access = (i / w.plane * w.all_lanes + lane) * w.plane + i % w.plane;
  return static_cast<uint64_t>(access) * (Config::kVector * kSizeOf<Config::kDtype>);
}

}  // namespace resnet_fused::cuda
