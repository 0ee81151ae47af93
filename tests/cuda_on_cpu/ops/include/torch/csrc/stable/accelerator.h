// A guard of devices where there is none: tensors are the CPU's, whose index is -1.
#pragma once
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

namespace torch::stable::accelerator {

using DeviceIndex = int32_t;

struct DeviceGuard {
  explicit DeviceGuard(DeviceIndex) {}
};

}  // namespace torch::stable::accelerator
