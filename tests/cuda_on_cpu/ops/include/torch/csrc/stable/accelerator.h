// A no-op DeviceGuard: tensors are on the CPU, with device index -1.
#pragma once
#include <torch/csrc/stable/c/shim.h>

#include <cstdint>

namespace torch::stable::accelerator {

using DeviceIndex = int32_t;

struct DeviceGuard {
  explicit DeviceGuard(DeviceIndex) {}
};

}  // namespace torch::stable::accelerator
