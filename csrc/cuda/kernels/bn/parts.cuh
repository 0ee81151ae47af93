// A block's part of a reduction: which items it sums, and where it stores the values of each channel.
#pragma once
#include "cuda/kernels/bn/grid_stride.cuh"
#include "cuda/kernels/bn/reduction.h"

namespace resnet_fused::cuda {

// A thread's place in a reduction, and its items: begin, begin + slots, ... below end.
struct PartPlace {
  uint32_t part, lane, slot, begin, end;
  uint32_t first, last;  // first and last item of the part
  bool inside;           // false for excess lanes of the last group

  __device__ __forceinline__ explicit PartPlace(const BnReduction& loop)
      : part(blockIdx.x / loop.groups),
        lane(blockIdx.x % loop.groups * loop.lanes + threadIdx.x % loop.lanes),
        slot(threadIdx.x / loop.lanes),
        begin(part * loop.each + slot),
        end(loop.items - part * loop.each < loop.each ? loop.items : (part + 1) * loop.each),
        first(part * loop.each),
        last(end - 1),
        inside(lane < loop.all_lanes) {}
};

// Sums the thread's items: runs of at most 32 elements in Acc (float32), the runs in float64. Longer float32 sums lose
// digits. add.template items<kCount>(run, i) adds items i, i + slots, ... (kCount of them) to `run`.
template <typename Config, typename Add>
__device__ __forceinline__ void sum_items(double (&total)[Config::kValues], const PartPlace& at, uint32_t slots,
                                          const Add& add) {
  constexpr int kBatch = Config::kBatch;
  constexpr int kMost = 32 / (kBatch * (Config::kVector / Config::kChannels)), kRuns = kMost > 0 ? kMost : 1;
#pragma unroll
  for (int i = 0; i < Config::kValues; ++i) total[i] = 0;
  for (uint32_t i = at.begin; i < at.end;) {
    typename Config::Acc run[Config::kValues] = {};
    int r = 0;
#pragma unroll 1
    for (; r < kRuns && i + (kBatch - 1) * slots < at.end; ++r, i += kBatch * slots) add.template items<kBatch>(run, i);
    if (r < kRuns)
      for (; i < at.end; i += slots) add.template items<1>(run, i);
#pragma unroll
    for (int v = 0; v < Config::kValues; ++v) total[v] += run[v];
  }
}

// Index of value `which` of part `part` and channel `channel`.
template <Parts kWhat>
__device__ __forceinline__ uint64_t value_at(uint32_t part, int32_t which, int32_t channels, int32_t channel) {
  return (static_cast<uint64_t>(part) * values_of(kWhat) + which) * channels + channel;
}

// Stores value v[which * kChannels + c] of channel c of the lane.
template <typename Config, Parts kWhat>
__device__ __forceinline__ void store_part(void* workspace, const PartPlace& at, int32_t channels,
                                           const double (&v)[values_of(kWhat) * Config::kChannels]) {
  using Acc = typename Config::Acc;
  constexpr Dtype kSum = sizeof(Acc) == 8 ? Dtype::kFloat64 : Dtype::kFloat32;
#pragma unroll
  for (int which = 0; which < values_of(kWhat); ++which)
#pragma unroll
    for (int c = 0; c < Config::kChannels; ++c) {
      const uint64_t to = value_at<kWhat>(at.part, which, channels, at.lane * Config::kChannels + c);
      store_element<kSum>(static_cast<char*>(workspace) + to * sizeof(Acc),
                          static_cast<Acc>(v[which * Config::kChannels + c]));
    }
}

}  // namespace resnet_fused::cuda
