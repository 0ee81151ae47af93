// Entry point of the primitives on a GPU for ctypes, and the error check that cuda/runtime/launch.h needs.
#include <cstdio>
#include <stdexcept>
#include <string>

#include "cuda/runtime/device.h"
#include "registry.h"

namespace resnet_fused::cuda {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + " failed: " + cudaGetErrorString(error));
}

}  // namespace resnet_fused::cuda

// Buffers are device addresses. Waits for the kernel; returns 0 on success, else 1 with a message in `error`.
extern "C" int cuda_primitives_run(const char* name, void* const* buffers, const int64_t* numbers, char* error,
                                   size_t error_bytes) {
  try {
    cuda_primitives::launch(name, {buffers, numbers});
    resnet_fused::cuda::check(cudaDeviceSynchronize(), name);
    return 0;
  } catch (const std::exception& e) {
    snprintf(error, error_bytes, "%s", e.what());
    return 1;
  }
}
