// Programmatic dependent launch (sm_90): a kernel's blocks may start while the previous kernel ends. No-ops before
// sm_90. The rules for kernels are in docs/kernels/overlap.md.
#pragma once

namespace resnet_fused::cuda::ptx {

// Waits until the grids that this one depends on have ended and their writes are visible. Returns at once in a grid
// launched without LAUNCH_DEPENDENT.
__device__ __forceinline__ void griddepcontrol_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets dependent grids start once every block has called this or exited. Their griddepcontrol_wait still waits for the
// end of this grid.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace resnet_fused::cuda::ptx
