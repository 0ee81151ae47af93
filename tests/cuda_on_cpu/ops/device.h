// The op layer's emulated environment: GPU, trust table, and environment variables. Changes apply from the next call.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "cuda/plan/plan.h"

namespace cuda_on_cpu {

void set_device(const resnet_fused::cuda::Device& device);
void set_engine(const std::string& text);
void set_check(const std::string& text);  // RESNET_FUSED_CUDA_CHECK
void set_capturing(bool capturing);
// Sets the trust table: (family name, compute capability) rows.
void set_verified(const std::vector<std::pair<std::string, int32_t>>& rows);
void forget_checks();  // resets the first-use state, as in a new process

// The PTX and binary version that every kernel reports, and how often the library has queried it.
void set_kernel_code(int ptx, int binary);
int kernel_code_asked();

}  // namespace cuda_on_cpu
