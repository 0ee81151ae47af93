// ReLU mask and both sums of BatchNorm's backward pass. Reads each tensor once.
#pragma once
#include "cuda/bn/bn_gradient.cuh"
#include "cuda/bn/fold.cuh"
#include "cuda/bn/parts.cuh"
#include "cuda/ptx/grid.cuh"
#include "cuda/ptx/shared.cuh"

namespace resnet_fused::cuda {

template <typename Config>
struct AddGradients {
  using Acc = typename Config::Acc;

  const BnGradient& from;
  char* kept;
  const BnReduction& walk;
  uint32_t lane;
  typename Config::Affine bn;
  Acc mean[Config::kChannels];

  __device__ __forceinline__ AddGradients(const BnBackwardReduceParams& p, const BnReduction& walk, uint32_t lane)
      : from(p.from), kept(static_cast<char*>(p.kept)), walk(walk), lane(lane), bn(from.bn, lane * Config::kChannels) {
    read_channels<Config::kDtype>(mean, from.bn.mean, lane * Config::kChannels, Acc(0));
  }

  template <int kCount>
  __device__ __forceinline__ void items(Acc (&sum)[Config::kValues], uint32_t i) const {
    GradientChunk<Config> chunk[kCount];
    uint64_t at[kCount];
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
      at[b] = offset_of<Config>(walk, lane, i + b * walk.slots);
      chunk[b].load(from, at[b]);
    }
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
      Acc g[Config::kVector];
#pragma unroll
      for (int e = 0; e < Config::kVector; ++e) {
        const int c = Config::channel_of(e);
        g[e] = chunk[b].g(bn, e);
        sum[c] += g[e];
        sum[Config::kChannels + c] = ptx::fma_rn(g[e], chunk[b].x.get(e) - mean[c], sum[Config::kChannels + c]);
      }
      if constexpr (Config::kMask == Mask::kOut)
        if (kept) Config::Data::store(kept + at[b], g);
    }
  }
};

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, kBnBlocksPerSm)
    bn_backward_reduce_kernel(const BnBackwardReduceParams p, const BnReduction walk) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  DYNAMIC_SMEM(smem);
  const PartPlace at(walk);
  double sum[Config::kValues] = {};
  if (at.inside) sum_items<Config>(sum, at, walk.slots, AddGradients<Config>(p, walk, at.lane));
  fold_slots(sum, reinterpret_cast<double*>(smem), walk.lanes, walk.slots);
  if (at.inside && at.slot == 0) store_part<Config, Parts::kSums>(p.workspace, at, p.from.shape.channels, sum);
}

}  // namespace resnet_fused::cuda
