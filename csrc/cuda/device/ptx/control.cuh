// Control instructions of sm_90: electing a thread of a warp, reallocating registers of a warpgroup.
#pragma once
#include <cstdint>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace resnet_fused::cuda::ptx {

// True in one lane of the warp, always the same one. All 32 lanes must call it together.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Set the registers per thread of a warpgroup to kRegisters, a multiple of 8 from 24 to 256. dec releases registers;
// inc waits until enough are free. All threads of the warpgroup must call it.
template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

#endif

}  // namespace resnet_fused::cuda::ptx

#endif
