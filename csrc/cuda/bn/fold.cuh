// Sums of the slots of a block become one, in an order that the number of slots decides.
#pragma once
#include "cuda/ptx/sync.cuh"

namespace resnet_fused::cuda {

// Every thread of the block comes here with kCount sums. Thread slot * lanes + lane holds slot `slot`; afterwards those
// of slot 0 hold everything. `memory` is of kCount values a thread of the block, and each is written once: a value
// written is read behind the next barrier, and never again.
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
