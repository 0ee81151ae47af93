// A LAUNCH that launches nothing, for timing host work alone. Kernels are not compiled.
#pragma once
#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

// Collects the arguments' addresses, as a call of cudaLaunchKernel does.
template <typename... Args>
void no_launch(dim3, dim3, size_t, const Args&... args) {
  const void* addresses[] = {&args...};
  asm volatile("" ::"r"(addresses) : "memory");
}

}  // namespace cuda_on_cpu

#define LAUNCH(kernel, grid, block, smem, stream, ...) \
  ((void)(stream), ::cuda_on_cpu::no_launch(grid, block, smem, __VA_ARGS__))

#define LAUNCH_DEPENDENT(kernel, grid, block, smem, queue, ...) \
  ((void)(queue), ::cuda_on_cpu::no_launch(grid, block, smem, __VA_ARGS__))

#define LAUNCH_CLUSTER(kernel, cluster, grid, block, smem, stream, ...) \
  LAUNCH(kernel, grid, block, smem, stream, __VA_ARGS__)
