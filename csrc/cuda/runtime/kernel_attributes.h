// What CUDA must be asked or told once per kernel and device, cached: the answers cost more than a launch.
#pragma once
#include <atomic>
#include <mutex>

namespace resnet_fused::cuda {

// The PTX and binary versions that a kernel was compiled for, each 10 * major + minor.
struct KernelCode {
  int ptx, binary;
};

// device/ptx/grid.cuh is a no-op before sm_90. An sm_90 GPU can also run code compiled from older PTX, which does not
// wait.
constexpr int kOverlappingArch = 90;

constexpr bool waits_for_grids(const KernelCode& code) {
  return code.ptx >= kOverlappingArch && code.binary >= kOverlappingArch;
}

constexpr int kCachedDevices = 64;  // beyond these, CUDA is asked every time

// Whether a kernel waits for the previous grid (griddepcontrol.wait), so that it may overlap with it.
class GridWaits {
 public:
  bool ask(const void* kernel, int device);

 private:
  enum Answer { kUnknown, kNo, kYes };
  std::atomic<Answer> answers_[kCachedDevices] = {};
};

// Requests dynamic shared memory beyond CUDA's default limit of 48 KiB per block, only where it is more than before.
// Thread-safe.
class SmemGrants {
 public:
  void ask(const void* kernel, int bytes);

 private:
  std::mutex mutex_;
  std::atomic<int> granted_[kCachedDevices] = {};
};

}  // namespace resnet_fused::cuda
