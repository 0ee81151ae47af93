// Asynchronous copies from global to shared memory (sm_80).
#pragma once
#include <cstdint>

namespace resnet_fused::cuda::ptx {

// Copies 16 bytes, bypassing L1; both addresses are multiples of 16. If not `valid`, writes zeros and does not read
// source.
__device__ __forceinline__ void cp_async_cg_16(uint32_t destination, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups of this thread but the latest kPending have landed.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace resnet_fused::cuda::ptx
