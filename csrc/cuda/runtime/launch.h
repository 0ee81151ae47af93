// All kernels are launched by these macros: LAUNCH(kernel, grid, block, shared bytes, stream, arguments...),
// LAUNCH_DEPENDENT(..., queue, arguments...), which may overlap the previous kernel, and LAUNCH_CLUSTER(kernel, blocks
// per cluster, ...). The emulator (tests/cuda_on_cpu) has its own cuda/runtime/launch.h first on its include path and
// runs the same kernels on the CPU.
#pragma once
#include "cuda/runtime/device.h"
#include "cuda/runtime/kernel_attributes.h"
#include "cuda/runtime/queue.h"

namespace resnet_fused::cuda {

// Programmatic dependent launch: blocks may start while the previous kernel in the stream ends, if the GPU supports it
// and this kernel waits for the previous one.
template <typename... Params, typename... Args>
cudaError_t launch_dependent(GridWaits& waits, void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem,
                             const Queue& queue, const Args&... args) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t how = {};
  how.gridDim = grid;
  how.blockDim = block;
  how.dynamicSmemBytes = smem;
  how.stream = queue.stream;
  how.attrs = &overlap;
  how.numAttrs = queue.overlaps && waits.ask(reinterpret_cast<const void*>(kernel), queue.device) ? 1 : 0;
  return cudaLaunchKernelEx(&how, kernel, args...);
}

template <typename... Params, typename... Args>
void launch_cluster(void (*kernel)(Params...), const char* what, unsigned cluster, dim3 grid, dim3 block, int smem,
                    CUstream_st* stream, const Args&... args) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = static_cast<size_t>(smem);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), what);
}

}  // namespace resnet_fused::cuda

// SmemGrants: more than 48 KiB of shared memory must be requested once per device.
#define LAUNCH(kernel, grid, block, smem, stream, ...)                         \
  do {                                                                         \
    static ::resnet_fused::cuda::SmemGrants grants;                            \
    grants.ask(reinterpret_cast<const void*>(kernel), (smem));                 \
    (kernel)<<<(grid), (block), (smem), (stream)>>>(__VA_ARGS__);              \
    ::resnet_fused::cuda::check(cudaGetLastError(), "the launch of " #kernel); \
  } while (0)

// For kernels in which every thread calls ptx::griddepcontrol_wait() before it touches global memory.
#define LAUNCH_DEPENDENT(kernel, grid, block, smem, queue, ...)                                               \
  do {                                                                                                        \
    static ::resnet_fused::cuda::SmemGrants grants;                                                           \
    static ::resnet_fused::cuda::GridWaits waits;                                                             \
    grants.ask(reinterpret_cast<const void*>(kernel), (smem));                                                \
    ::resnet_fused::cuda::check(                                                                              \
        ::resnet_fused::cuda::launch_dependent(waits, kernel, (grid), (block), (smem), (queue), __VA_ARGS__), \
        "the launch of " #kernel);                                                                            \
  } while (0)

#define LAUNCH_CLUSTER(kernel, cluster, grid, block, smem, stream, ...)                                          \
  do {                                                                                                           \
    static ::resnet_fused::cuda::SmemGrants grants;                                                              \
    grants.ask(reinterpret_cast<const void*>(kernel), (smem));                                                   \
    ::resnet_fused::cuda::launch_cluster((kernel), "the launch of " #kernel, (cluster), (grid), (block), (smem), \
                                         (stream), __VA_ARGS__);                                                 \
  } while (0)
