// The emulated twin of csrc/cuda/device/ptx/shared.cuh.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions.h"

#define DYNAMIC_SMEM(name) unsigned char* const name = ::cuda_on_cpu::shared_memory()

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ uint32_t smem_address(const void* pointer) { return cuda_on_cpu::shared_address(pointer); }

__device__ __forceinline__ void ld_shared_v4(uint32_t (&d)[4], uint32_t address) {
  cuda_on_cpu::load_shared(d, address, 16);
}

__device__ __forceinline__ void st_shared_v4(uint32_t address, const uint32_t (&s)[4]) {
  cuda_on_cpu::store_shared(address, s, 16);
}

}  // namespace resnet_fused::cuda::ptx
