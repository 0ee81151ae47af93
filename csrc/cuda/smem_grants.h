// Dynamic shared memory beyond what every kernel has.
#pragma once
#include <atomic>

namespace resnet_fused::cuda {

// Shared memory granted to a kernel on each device. Asking CUDA is slow, so it is asked only for more than before.
class SmemGrants {
 public:
  void ask(const void* kernel, int bytes);

 private:
  static constexpr int kDevices = 64;  // beyond these CUDA is asked every time
  std::atomic<int> granted_[kDevices] = {};
};

}  // namespace resnet_fused::cuda
