// The emulated twin of csrc/cuda/device/ptx/control.cuh. The number of registers is not limited here.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions_sm90.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ bool elect_one() { return cuda_on_cpu::elect_one(); }

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_dec() {
  cuda_on_cpu::setmaxnreg(kRegisters);
}

template <int kRegisters>
__device__ __forceinline__ void setmaxnreg_inc() {
  cuda_on_cpu::setmaxnreg(kRegisters);
}

}  // namespace resnet_fused::cuda::ptx
