// The GPU that the op layer believes to have, what is believed of its kernels, and the environment's variables as of
// the next call.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "cuda/plan.h"

namespace cuda_on_cpu {

void set_device(const resnet_fused::cuda::Device& device);
void set_engine(const std::string& text);
void set_check(const std::string& text);  // RESNET_FUSED_CUDA_CHECK
void set_capturing(bool capturing);
// The table: families by name, and compute capabilities.
void set_verified(const std::vector<std::pair<std::string, int32_t>>& rows);
void forget_checks();  // as in a new process

// Of every kernel; and how often the library has asked.
void set_kernel_code(int ptx, int binary);
int kernel_code_asked();

}  // namespace cuda_on_cpu
