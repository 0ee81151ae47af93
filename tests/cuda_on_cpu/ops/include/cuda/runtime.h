// Double of csrc/cuda/runtime.h for the op layer on the CPU: tests set the GPU through ops/device.h.
#pragma once
#include "cuda/grid_waits.h"
#include "cuda/plan.h"
#include "cuda/queue.h"
#include "cuda/trust.h"

namespace resnet_fused::cuda {

const Device& device_numbers(int device);
const EngineChoice& chosen_engine();
CheckMode chosen_check();
bool is_capturing(int device);
KernelCode code_of(const void* kernel);
Queue current_queue(int device);

}  // namespace resnet_fused::cuda
