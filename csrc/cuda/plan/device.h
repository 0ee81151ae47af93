// The GPU properties that plans depend on. Pure.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda {

class KernelStates;  // trust.h

struct Device {
  int32_t arch = 80;  // 10 * major + minor
  int32_t sm_count = 108;
  int32_t smem_per_block = 166912;  // bytes per block, at most
  int32_t smem_per_sm = 167936;     // bytes shared by the blocks of an SM
  KernelStates* states = nullptr;   // what this process knows of its kernels; null: none was wrong
};

}  // namespace resnet_fused::cuda
