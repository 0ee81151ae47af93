// Double of csrc/cuda/runtime/device.h for the op layer on the CPU: tests set the GPU through ops/device.h.
#pragma once
#include "cuda/plan/plan.h"
#include "cuda/plan/trust.h"
#include "cuda/runtime/kernel_attributes.h"
#include "cuda/runtime/queue.h"

namespace resnet_fused::cuda {

const Device& device_numbers(int device);
const Override& chosen_override();
CheckMode chosen_check();
bool is_capturing(int device);
KernelCode code_of(const void* kernel);
int current_device();
void allow_shared_memory(const void* kernel, int bytes);
Queue current_queue(int device);

}  // namespace resnet_fused::cuda
