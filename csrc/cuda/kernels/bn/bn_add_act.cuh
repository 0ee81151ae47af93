// out = act(bn(x) + shortcut) in one pass: each element is read once and written once. docs/kernels/bn_add_act.md has
// the roofline.
#pragma once
#include "cuda/device/ptx/grid.cuh"
#include "cuda/device/tile/scale_shift.cuh"
#include "cuda/kernels/bn/bn_add_act.h"
#include "cuda/kernels/bn/grid_stride.cuh"

namespace resnet_fused::cuda {

template <Dtype kDtype, int kVector, Layout kLayout, Shortcut kShortcut_>
struct BnAddActConfig : BnConfig<kDtype, kVector, kLayout> {
  static constexpr Shortcut kShortcut = kShortcut_;
  static constexpr int kBatch = 4;  // independent accesses per thread and tensor
};

// Processes kCount items: i, i + step, ... Their loads are independent, so all can be in flight together.
template <typename Config, int kCount, typename Affine>
__device__ __forceinline__ void apply_batch(const BnAddActParams& p, const GridStrideLoop& loop, const Affine& bn,
                                            const Affine& shortcut_bn, uint32_t lane, uint32_t i, uint32_t step) {
  using Acc = typename Config::Acc;
  typename Config::Data x[kCount], shortcut[kCount];
  uint64_t at[kCount];
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    at[b] = offset_of<Config>(loop, lane, i + b * step);
    x[b].template load<Access::kPlain>(static_cast<const char*>(p.x) + at[b]);  // plain, since out may alias x
    if constexpr (Config::kShortcut != Shortcut::kNone)
      shortcut[b].template load<Access::kReadOnly>(static_cast<const char*>(p.shortcut) + at[b]);
  }
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    Acc v[Config::kVector];
#pragma unroll
    for (int e = 0; e < Config::kVector; ++e) {
      const int channel = Config::channel_of(e);
      v[e] = bn.apply(x[b].get(e), channel);
      if constexpr (Config::kShortcut == Shortcut::kAdd) v[e] += shortcut[b].get(e);
      if constexpr (Config::kShortcut == Shortcut::kProjected) v[e] += shortcut_bn.apply(shortcut[b].get(e), channel);
      if (p.relu) v[e] = relu_of(v[e]);
    }
    Config::Data::store(static_cast<char*>(p.out) + at[b], v);
  }
}

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads)
    bn_add_act_kernel(const BnAddActParams p, const GridStrideLoop loop) {
  using Affine = ScaleShift<Config::kDtype, Config::kChannels>;
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const uint32_t group = blockIdx.x % loop.groups, split = blockIdx.x / loop.groups;
  const uint32_t lane = group * loop.lanes + threadIdx.x % loop.lanes;
  if (lane >= loop.all_lanes) return;

  const Affine bn(p.bn, lane * Config::kChannels);
  const Affine shortcut_bn =
      Config::kShortcut == Shortcut::kProjected ? Affine(p.shortcut_bn, lane * Config::kChannels) : bn;

  const uint32_t step = loop.splits * loop.slots;
  uint32_t i = split * loop.slots + threadIdx.x / loop.lanes;
  for (; i + (Config::kBatch - 1) * step < loop.items; i += Config::kBatch * step)
    apply_batch<Config, Config::kBatch>(p, loop, bn, shortcut_bn, lane, i, step);
  for (; i < loop.items; i += step) apply_batch<Config, 1>(p, loop, bn, shortcut_bn, lane, i, step);
}

}  // namespace resnet_fused::cuda
