// Programmatic dependent launch: a kernel's blocks may start while the previous kernel ends (sm_90). No-ops before
// sm_90.
#pragma once

namespace resnet_fused::cuda::ptx {

// Until the grids that this one depends on have ended and their writes are seen. Where a grid was launched without
// LAUNCH_DEPENDENT, at once.
__device__ __forceinline__ void griddepcontrol_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Grids that depend on this one may start once every block has said so, or ended. They wait for its end all the same.
__device__ __forceinline__ void griddepcontrol_launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace resnet_fused::cuda::ptx
