// LAUNCH_CLUSTER(kernel, blocks per cluster, grid, block, shared bytes, stream, arguments...): LAUNCH with thread block
// clusters. The emulator (tests/cuda_on_cpu) has its own.
#pragma once
#include "cuda/launch.h"

namespace resnet_fused::cuda {

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

#define LAUNCH_CLUSTER(kernel, cluster, grid, block, smem, stream, ...)                                          \
  do {                                                                                                           \
    static ::resnet_fused::cuda::SmemGrants grants;                                                              \
    grants.ask(reinterpret_cast<const void*>(kernel), (smem));                                                   \
    ::resnet_fused::cuda::launch_cluster((kernel), "the launch of " #kernel, (cluster), (grid), (block), (smem), \
                                         (stream), __VA_ARGS__);                                                 \
  } while (0)
