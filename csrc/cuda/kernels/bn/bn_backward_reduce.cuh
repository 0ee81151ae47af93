// ReLU mask and both sums of BatchNorm's backward pass. Reads each tensor once.
#pragma once
#include "cuda/device/ptx/grid.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/kernels/bn/bn_gradient.cuh"
#include "cuda/kernels/bn/fold.cuh"
#include "cuda/kernels/bn/parts.cuh"

namespace resnet_fused::cuda {

template <typename Config>
struct AddGradients {
  using Acc = typename Config::Acc;

  const BnGradient& from;
  char* masked_grad;
  const BnReduction& loop;
  uint32_t lane;
  typename Config::Affine bn;
  Acc mean[Config::kChannels];

  __device__ __forceinline__ AddGradients(const BnBackwardReduceParams& p, const BnReduction& loop, uint32_t lane)
      : from(p.from),
        masked_grad(static_cast<char*>(p.masked_grad)),
        loop(loop),
        lane(lane),
        bn(from.bn, lane * Config::kChannels) {
    read_channels<Config::kDtype>(mean, from.bn.mean, lane * Config::kChannels, Acc(0));
  }

  template <int kCount>
  __device__ __forceinline__ void items(Acc (&sum)[Config::kValues], uint32_t i) const {
    GradientChunk<Config> chunk[kCount];
    uint64_t at[kCount];
#pragma unroll
    for (int b = 0; b < kCount; ++b) {
      at[b] = offset_of<Config>(loop, lane, i + b * loop.slots);
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
        if (masked_grad) Config::Data::store(masked_grad + at[b], g);
    }
  }
};

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, kBnBlocksPerSm)
    bn_backward_reduce_kernel(const BnBackwardReduceParams p, const BnReduction loop) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  DYNAMIC_SMEM(smem);
  const PartPlace at(loop);
  double sum[Config::kValues] = {};
  if (at.inside) sum_items<Config>(sum, at, loop.slots, AddGradients<Config>(p, loop, at.lane));
  fold_slots(sum, reinterpret_cast<double*>(smem), loop.lanes, loop.slots);
  if (at.inside && at.slot == 0) store_part<Config, Parts::kSums>(p.workspace, at, p.from.shape.channels, sum);
}

}  // namespace resnet_fused::cuda
