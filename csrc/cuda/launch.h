// LAUNCH(kernel, grid, block, shared bytes, stream, arguments...): the one place that says <<<>>>.
// tests/cuda_on_cpu has its own cuda/launch.h, found first there, which runs the same kernels on the CPU.
#pragma once
#include "cuda/runtime.h"
#include "cuda/smem_grants.h"

// A kernel that wants more than 48 KiB of shared memory must have said so, once on each device.
#define LAUNCH(kernel, grid, block, smem, stream, ...)                         \
  do {                                                                         \
    static ::resnet_fused::cuda::SmemGrants grants;                            \
    grants.ask(reinterpret_cast<const void*>(kernel), (smem));                 \
    (kernel)<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__);              \
    ::resnet_fused::cuda::check(cudaGetLastError(), "the launch of " #kernel); \
  } while (0)
