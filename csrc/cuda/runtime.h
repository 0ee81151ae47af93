// The CUDA runtime for host code: errors as sentences, device properties, the current stream.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/device.h"
#include "cuda/queue.h"

namespace resnet_fused::cuda {

struct EngineChoice;
enum class CheckMode : int32_t;
struct KernelCode;

// Throws std::runtime_error "<what> failed: <CUDA's own words>" unless error is cudaSuccess.
void check(cudaError_t error, const char* what);

// The device's numbers, read from CUDA once: an op costs microseconds, and asking takes some of them.
const Device& device_numbers(int device);

// RESNET_FUSED_CUDA_ENGINE, read once. Throws a sentence at a name that it does not know.
const EngineChoice& chosen_engine();

// RESNET_FUSED_CUDA_CHECK, likewise.
CheckMode chosen_check();

// Whether what is launched on torch's current stream of the device goes into a graph and does not run.
bool is_capturing(int device);

// What the current device has loaded of a kernel.
KernelCode code_of(const void* kernel);

// torch's current stream of the device.
Queue current_queue(int device);

}  // namespace resnet_fused::cuda
