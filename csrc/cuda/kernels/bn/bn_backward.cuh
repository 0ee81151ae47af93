// Gradient of a BatchNorm's input. Reads each tensor once and writes the result once.
#pragma once
#include "cuda/device/ptx/grid.cuh"
#include "cuda/kernels/bn/bn_gradient.cuh"

namespace resnet_fused::cuda {

// Per-channel terms of the result: scale * (g - by_g - by_x * (x - mean)). As in torch, scale multiplies last: an
// infinite scale then gives Inf, where multiplying each term would subtract infinities.
template <typename Config>
struct BackwardVectors {
  using Acc = typename Config::Acc;
  static constexpr int kChannels = Config::kChannels;

  typename Config::Affine bn;
  Acc mean[kChannels], by_g[kChannels], by_x[kChannels];

  __device__ __forceinline__ BackwardVectors(const BnBackwardParams& p, int first) : bn(p.from.bn, first) {
    if (!p.sum_g.data) return;
    Acc var[kChannels];
    read_channels<Config::kDtype>(mean, p.from.bn.mean, first, Acc(0));
    read_channels<Config::kDtype>(var, p.from.bn.var, first, Acc(1));
    read_channels<Config::kDtype>(by_g, p.sum_g, first, Acc(0));
    read_channels<Config::kDtype>(by_x, p.sum_g_xhat, first, Acc(0));
    const Acc share = static_cast<Acc>(1 / p.count);
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      by_g[c] *= share;
      by_x[c] *= ptx::rcp_rn(ptx::sqrt_rn(var[c] + static_cast<Acc>(p.from.bn.eps))) * share;
    }
  }
};

// Processes kCount items: i, i + step, ... Their loads are independent, so all can be in flight together.
template <typename Config, int kCount>
__device__ __forceinline__ void apply_gradients(const BnBackwardParams& p, const GridStrideLoop& loop,
                                                const BackwardVectors<Config>& v, uint32_t lane, uint32_t i,
                                                uint32_t step) {
  using Acc = typename Config::Acc;
  GradientChunk<Config> chunk[kCount];
  uint64_t at[kCount];
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    at[b] = offset_of<Config>(loop, lane, i + b * step);
    chunk[b].load(p.from, at[b]);
  }
#pragma unroll
  for (int b = 0; b < kCount; ++b) {
    Acc to[Config::kVector];
#pragma unroll
    for (int e = 0; e < Config::kVector; ++e) {
      const int c = Config::channel_of(e);
      Acc g = chunk[b].g(v.bn, e);
      if (p.sum_g.data) g -= ptx::fma_rn(v.by_x[c], chunk[b].x.get(e) - v.mean[c], v.by_g[c]);
      to[e] = v.bn.scale[c] * g;
    }
    Config::Data::store(static_cast<char*>(p.to) + at[b], to);
  }
}

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, kBnBlocksPerSm)
    bn_backward_kernel(const BnBackwardParams p, const GridStrideLoop loop) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const uint32_t group = blockIdx.x % loop.groups, split = blockIdx.x / loop.groups;
  const uint32_t lane = group * loop.lanes + threadIdx.x % loop.lanes;
  if (lane >= loop.all_lanes) return;
  const BackwardVectors<Config> vectors(p, lane * Config::kChannels);

  const uint32_t step = loop.splits * loop.slots;
  uint32_t i = split * loop.slots + threadIdx.x / loop.lanes;
  for (; i + (Config::kBatch - 1) * step < loop.items; i += Config::kBatch * step)
    apply_gradients<Config, Config::kBatch>(p, loop, vectors, lane, i, step);
  for (; i < loop.items; i += step) apply_gradients<Config, 1>(p, loop, vectors, lane, i, step);
}

}  // namespace resnet_fused::cuda
