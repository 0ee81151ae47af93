// The GPU that the op layer believes to have, and RESNET_FUSED_CUDA_ENGINE as of the next call.
#pragma once
#include <string>

#include "cuda/plan.h"

namespace cuda_on_cpu {

void set_device(const resnet_fused::cuda::Device& device);
void set_engine(const std::string& text);

// Of every kernel; and how often the library has asked.
void set_kernel_code(int ptx, int binary);
int kernel_code_asked();

}  // namespace cuda_on_cpu
