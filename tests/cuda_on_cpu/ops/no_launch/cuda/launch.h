// A LAUNCH that launches nothing: what is left is the host's own work, to be timed. Kernels are not even compiled.
#pragma once
#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

// Takes the arguments' addresses, as cudaLaunchKernel does.
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
