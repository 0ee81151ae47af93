// Adds the sums of a block's slots, in an order that depends only on the number of slots.
#pragma once
#include "cuda/device/ptx/sync.cuh"

namespace resnet_fused::cuda {

// Every thread of the block calls this with kCount sums. Thread slot * lanes + lane passes those of its slot; on return
// the threads of slot 0 hold the totals. `memory` has kCount values per thread. Each is written at most once and read
// only after the next barrier, so one barrier per round is enough.
template <int kCount, typename Acc>
__device__ __forceinline__ void fold_slots(Acc (&sum)[kCount], Acc* memory, uint32_t lanes, uint32_t slots) {
  const uint32_t thread = threadIdx.x, slot = thread / lanes, threads = lanes * slots;
  for (uint32_t width = slots; width > 1;) {
    const uint32_t half = (width + 1) / 2;
    if (slot >= half && slot < width)
#pragma unroll
      for (int i = 0; i < kCount; ++i) memory[i * threads + thread] = sum[i];
    ptx::bar_sync_all();
    if (slot + half < width)
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum[i] += memory[i * threads + thread + half * lanes];
    width = half;
  }
}

}  // namespace resnet_fused::cuda
