// Requests dynamic shared memory beyond CUDA's default limit of 48 KiB per block.
#pragma once
#include <atomic>

namespace resnet_fused::cuda {

// The shared memory granted to a kernel on each device. A request is slow, so it is made only for more than before.
class SmemGrants {
 public:
  void ask(const void* kernel, int bytes);

 private:
  static constexpr int kDevices = 64;  // beyond these, CUDA is asked every time
  std::atomic<int> granted_[kDevices] = {};
};

}  // namespace resnet_fused::cuda
