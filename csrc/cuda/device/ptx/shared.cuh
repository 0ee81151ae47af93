// Shared memory. A kernel has one allocation, whose size the launch sets.
#pragma once
#include <cstdint>

// Declares the block's dynamic shared memory as an array of bytes, aligned for every swizzle.
#define DYNAMIC_SMEM(name) extern __shared__ __align__(1024) unsigned char name[]

namespace resnet_fused::cuda::ptx {

// The 32-bit shared memory address that instructions take.
__device__ __forceinline__ uint32_t smem_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void ld_shared_v4(uint32_t (&d)[4], uint32_t address) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void st_shared_v4(uint32_t address, const uint32_t (&s)[4]) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(s[0]), "r"(s[1]), "r"(s[2]), "r"(s[3])
               : "memory");
}

}  // namespace resnet_fused::cuda::ptx
