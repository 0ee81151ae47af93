// out = act(bn(x) + shortcut), each element read once and written once. docs/kernels/bn_add_act.md has the roofline.
#pragma once
#include "cuda/bn/bn_add_act.h"
#include "cuda/ptx/grid.cuh"
#include "cuda/tile/element.cuh"
#include "cuda/tile/scale_shift.cuh"

namespace resnet_fused::cuda {

template <Dtype kDtype_, int kVector_, Layout kLayout_, Shortcut kShortcut_>
struct BnAddActConfig {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr int kVector = kVector_;
  static constexpr Layout kLayout = kLayout_;
  static constexpr Shortcut kShortcut = kShortcut_;

  static constexpr int kThreads = kBnAddActThreads;
  static constexpr int kBatch = 4;                                          // independent accesses a thread and tensor
  static constexpr int kChannels = kLayout == Layout::kNHWC ? kVector : 1;  // a thread's own
  using Acc = typename Arithmetic<kDtype>::Type;
  using Data = Chunk<kDtype, kVector>;

  static_assert(kVector == 1 || kVector * kSizeOf<kDtype> == 16, "an access is one element or 16 bytes");
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
};

// Bytes from the start of the tensor to item i of lane `lane`.
template <typename Config>
__device__ __forceinline__ uint64_t offset_of(const BnAddActWalk& w, uint32_t lane, uint32_t i) {
  uint32_t access;
  if constexpr (Config::kLayout == Layout::kNHWC)
    access = i * w.all_lanes + lane;
  else
    access = (i / w.plane * w.all_lanes + lane) * w.plane + i % w.plane;
  return static_cast<uint64_t>(access) * (Config::kVector * kSizeOf<Config::kDtype>);
}

// Items i, i + step, ... kCount of them, whose loads depend on nothing and can be in flight together.
template <typename Config, int kCount, typename Affine>
__device__ __forceinline__ void apply_batch(const BnAddActParams& p, const BnAddActWalk& walk, const Affine& bn,
                                            const Affine& shortcut_bn, uint32_t lane, uint32_t i, uint32_t step) {
  using Acc = typename Config::Acc;
  typename Config::Data x[kCount], shortcut[kCount];
  uint64_t at[kCount];
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    at[b] = offset_of<Config>(walk, lane, i + b * step);
    x[b].template load<Access::kPlain>(static_cast<const char*>(p.x) + at[b]);  // plain, for out may be x
    if constexpr (Config::kShortcut != Shortcut::kNone)
      shortcut[b].template load<Access::kReadOnly>(static_cast<const char*>(p.shortcut) + at[b]);
  }
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    Acc v[Config::kVector];
#pragma unroll
    for (int e = 0; e < Config::kVector; ++e) {
      const int channel = Config::kChannels == 1 ? 0 : e;
      v[e] = bn.apply(x[b].get(e), channel);
      if constexpr (Config::kShortcut == Shortcut::kAdd) v[e] += shortcut[b].get(e);
      if constexpr (Config::kShortcut == Shortcut::kProjected) v[e] += shortcut_bn.apply(shortcut[b].get(e), channel);
      if (p.relu) v[e] = relu_of(v[e]);
    }
    Config::Data::store(static_cast<char*>(p.out) + at[b], v);
  }
}

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads) bn_add_act_kernel(const BnAddActParams p, const BnAddActWalk walk) {
  using Affine = ScaleShift<Config::kDtype, Config::kChannels>;
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const uint32_t group = blockIdx.x % walk.groups, split = blockIdx.x / walk.groups;
  const uint32_t lane = group * walk.lanes + threadIdx.x % walk.lanes;
  if (lane >= walk.all_lanes) return;

  const Affine bn(p.bn, lane * Config::kChannels);
  const Affine shortcut_bn =
      Config::kShortcut == Shortcut::kProjected ? Affine(p.shortcut_bn, lane * Config::kChannels) : bn;

  const uint32_t step = walk.splits * walk.slots;
  uint32_t i = split * walk.slots + threadIdx.x / walk.lanes;
  for (; i + (Config::kBatch - 1) * step < walk.items; i += Config::kBatch * step)
    apply_batch<Config, Config::kBatch>(p, walk, bn, shortcut_bn, lane, i, step);
  for (; i < walk.items; i += step) apply_batch<Config, 1>(p, walk, bn, shortcut_bn, lane, i, step);
}

}  // namespace resnet_fused::cuda
