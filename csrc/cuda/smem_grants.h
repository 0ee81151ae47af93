// Dynamic shared memory beyond what every kernel has.
#pragma once
#include <atomic>

namespace resnet_fused::cuda {

// What one kernel has been granted on each device: asking CUDA costs more than a launch should, so it is asked only
// for more than before.
class SmemGrants {
 public:
  void ask(const void* kernel, int bytes);

 private:
  static constexpr int kDevices = 64;  // beyond these CUDA is asked every time
  std::atomic<int> granted_[kDevices] = {};
};

}  // namespace resnet_fused::cuda
