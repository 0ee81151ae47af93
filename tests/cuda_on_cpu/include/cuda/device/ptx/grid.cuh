// The emulated twin of csrc/cuda/device/ptx/grid.cuh. Grids run one after another; the runtime records which threads
// have waited.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions_sm90.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void griddepcontrol_wait() { cuda_on_cpu::griddepcontrol_wait(); }

__device__ __forceinline__ void griddepcontrol_launch_dependents() {}

}  // namespace resnet_fused::cuda::ptx
