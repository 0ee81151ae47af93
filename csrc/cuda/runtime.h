// What host code needs of the CUDA runtime: errors as sentences, and where to launch.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/queue.h"

namespace resnet_fused::cuda {

// Throws std::runtime_error "<what> failed: <CUDA's own words>" unless error is cudaSuccess.
void check(cudaError_t error, const char* what);

// torch's current stream of the device.
Queue current_queue(int device);

}  // namespace resnet_fused::cuda
