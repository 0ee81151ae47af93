// The properties of a GPU that plans depend on. Pure.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda {

class KernelStates;  // trust.h

struct Device {
  int32_t arch = 80;  // 10 * major + minor
  int32_t sm_count = 108;
  int32_t smem_per_block = 166912;  // bytes a block may ask for
  int32_t smem_per_sm = 167936;     // bytes that blocks of one SM share
  KernelStates* states = nullptr;   // its kernels, as this process has seen them; null: none was wrong
};

}  // namespace resnet_fused::cuda
