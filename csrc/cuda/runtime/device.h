// The CUDA runtime for host code: errors as exceptions, device properties, the current stream.
#pragma once
#include <cuda_runtime_api.h>

#include "cuda/plan/types.h"
#include "cuda/runtime/queue.h"

namespace resnet_fused::cuda {

struct Override;
enum class CheckMode : int32_t;
struct KernelCode;

// Throws std::runtime_error "<what> failed: <CUDA's message>" unless error is cudaSuccess.
void check(cudaError_t error, const char* what);

// The device's properties, read from CUDA once: a query would take a noticeable part of an op's few microseconds.
const Device& device_numbers(int device);

// RESNET_FUSED_CUDA_ENGINE, read once. Throws std::runtime_error for an unknown name.
const Override& chosen_override();

// RESNET_FUSED_CUDA_CHECK, read once. Throws std::runtime_error for an unknown value.
CheckMode chosen_check();

// Whether torch's current stream of the device is being captured, so that launches go into a graph and do not run.
bool is_capturing(int device);

// The versions of a kernel's code that the current device has loaded.
KernelCode code_of(const void* kernel);

int current_device();

// Lets a kernel use this much dynamic shared memory per block on the current device.
void allow_shared_memory(const void* kernel, int bytes);

// torch's current stream of the device.
Queue current_queue(int device);

}  // namespace resnet_fused::cuda
