// Decides which kernels may overlap the previous one: those whose loaded code waits for it (griddepcontrol.wait).
#pragma once
#include <atomic>

namespace resnet_fused::cuda {

// The PTX and binary versions that a kernel was compiled for, each 10 * major + minor.
struct KernelCode {
  int ptx, binary;
};

// ptx/grid.cuh is a no-op before sm_90. An sm_90 GPU can also run code compiled from older PTX, which does not wait.
constexpr int kOverlappingArch = 90;

constexpr bool waits_for_grids(const KernelCode& code) {
  return code.ptx >= kOverlappingArch && code.binary >= kOverlappingArch;
}

// Whether one kernel waits, cached per device: CUDA is queried once.
class GridWaits {
 public:
  bool ask(const void* kernel, int device);

 private:
  static constexpr int kDevices = 64;  // beyond these, CUDA is queried every time
  enum Answer { kUnknown, kNo, kYes };
  std::atomic<Answer> answers_[kDevices] = {};
};

}  // namespace resnet_fused::cuda
