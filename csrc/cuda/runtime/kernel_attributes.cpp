#include "cuda/runtime/kernel_attributes.h"

#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

bool GridWaits::ask(const void* kernel, int device) {
  const bool cached = device < kCachedDevices;
  if (cached) {
    const Answer answer = answers_[device].load(std::memory_order_relaxed);
    if (answer != kUnknown) return answer == kYes;
  }
  const bool waits = waits_for_grids(code_of(kernel));
  if (cached) answers_[device].store(waits ? kYes : kNo, std::memory_order_relaxed);
  return waits;
}

void SmemGrants::ask(const void* kernel, int bytes) {
  constexpr int kFree = 48 << 10;
  if (bytes <= kFree) return;
  const int device = current_device();
  const bool cached = device < kCachedDevices;
  if (cached && granted_[device].load(std::memory_order_relaxed) >= bytes) return;
  const std::lock_guard<std::mutex> lock(mutex_);  // the attribute is set, not raised: a smaller one must not follow
  if (cached && granted_[device].load(std::memory_order_relaxed) >= bytes) return;
  allow_shared_memory(kernel, bytes);
  if (cached) granted_[device].store(bytes, std::memory_order_relaxed);
}

}  // namespace resnet_fused::cuda
