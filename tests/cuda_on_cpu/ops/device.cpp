#include "ops/device.h"

#include "cuda/runtime.h"

namespace cuda_on_cpu {

namespace {

resnet_fused::cuda::Device device;
resnet_fused::cuda::EngineChoice choice;

}  // namespace

void set_device(const resnet_fused::cuda::Device& wanted) { device = wanted; }
void set_engine(const std::string& text) { choice = resnet_fused::cuda::engine_choice(text.c_str()); }

}  // namespace cuda_on_cpu

namespace resnet_fused::cuda {

const Device& device_numbers(int) { return cuda_on_cpu::device; }
const EngineChoice& chosen_engine() { return cuda_on_cpu::choice; }
Queue current_queue(int) { return {nullptr, cuda_on_cpu::device.sm_count}; }

}  // namespace resnet_fused::cuda
