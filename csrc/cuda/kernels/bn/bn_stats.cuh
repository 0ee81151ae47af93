// Moments (bn/reduction.h) of a block's part of each channel. Reads x once. See docs/kernels/bn_train_cuda.md.
#pragma once
#include "cuda/device/ptx/grid.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/kernels/bn/bn_stats.h"
#include "cuda/kernels/bn/fold.cuh"
#include "cuda/kernels/bn/moments.cuh"
#include "cuda/kernels/bn/parts.cuh"

namespace resnet_fused::cuda {

template <Dtype kDtype, int kVector, Layout kLayout>
struct BnStatsConfig : BnConfig<kDtype, kVector, kLayout> {
  static constexpr int kBatch = 4;                                                   // independent accesses per thread
  static constexpr int kValues = 2 * BnConfig<kDtype, kVector, kLayout>::kChannels;  // sums per thread
};

template <typename Config>
struct AddDistances {
  const char* x;
  const BnReduction& loop;
  uint32_t lane;
  typename Config::Acc center[Config::kChannels];

  template <int kCount>
  __device__ __forceinline__ void items(typename Config::Acc (&sum)[Config::kValues], uint32_t i) const {
    typename Config::Data data[kCount];
#pragma unroll
    for (int b = 0; b < kCount; ++b) load(data[b], i + b * loop.slots);
#pragma unroll
    for (int b = 0; b < kCount; ++b)
#pragma unroll
      for (int e = 0; e < Config::kVector; ++e) {
        const int c = Config::channel_of(e);
        add_distance(sum[c], sum[Config::kChannels + c], data[b].get(e), center[c]);
      }
  }

  __device__ __forceinline__ void load(typename Config::Data& data, uint32_t i) const {
    data.template load<Access::kReadOnly>(x + offset_of<Config>(loop, lane, i));
  }
};

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, kBnBlocksPerSm)
    bn_stats_kernel(const BnStatsParams p, const BnReduction loop) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  DYNAMIC_SMEM(smem);
  constexpr int kChannels = Config::kChannels;
  const PartPlace at(loop);
  AddDistances<Config> add{static_cast<const char*>(p.x), loop, at.lane, {}};
  double sum[Config::kValues] = {};
  if (at.inside) {
    // All threads of a lane use the same center, so their sums can be added directly.
    typename Config::Data sample[3];
#pragma unroll
    for (int i = 0; i < 3; ++i)
      add.load(sample[i], at.first + static_cast<uint32_t>(i * uint64_t{at.last - at.first} / 2));
#pragma unroll
    for (int c = 0; c < kChannels; ++c) add.center[c] = center_of(sample[0].get(c), sample[1].get(c), sample[2].get(c));
    sum_items<Config>(sum, at, loop.slots, add);
  }
  fold_slots(sum, reinterpret_cast<double*>(smem), loop.lanes, loop.slots);
  if (!at.inside || at.slot != 0) return;
  double part[values_of(Parts::kMoments) * kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    double &center = part[c] = add.center[c], &distances = part[kChannels + c] = sum[c];
    double& squares = part[2 * kChannels + c] = sum[kChannels + c];
    center_on_mean<typename Config::Acc>(center, distances, squares,
                                         (at.last - at.first + 1) * (Config::kVector / kChannels));
  }
  store_part<Config, Parts::kMoments>(p.workspace, at, p.shape.channels, part);
}

}  // namespace resnet_fused::cuda
