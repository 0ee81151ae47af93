// Copies from global to shared memory that go on while the thread does (sm_80).
#pragma once
#include <cstdint>

namespace resnet_fused::cuda::ptx {

// 16 bytes, past L1; both addresses are multiples of 16. Where not `valid`, zeros, and source is not read.
__device__ __forceinline__ void cp_async_cg_16(uint32_t destination, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all of this thread's groups but the kPending latest have landed.
template <int kPending>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace resnet_fused::cuda::ptx
