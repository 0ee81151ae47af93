// Which kernels may overlap the previous one: those whose loaded code waits for it.
#pragma once
#include <atomic>

namespace resnet_fused::cuda {

// What a kernel was compiled from and to, each 10 * major + minor.
struct KernelCode {
  int ptx, binary;
};

// From here on ptx/grid.cuh has instructions. A GPU of sm_90 also runs what was compiled from earlier PTX, without
// them.
constexpr int kOverlappingArch = 90;

constexpr bool waits_for_grids(const KernelCode& code) {
  return code.ptx >= kOverlappingArch && code.binary >= kOverlappingArch;
}

// Whether one kernel waits, on each device. CUDA is asked once.
class GridWaits {
 public:
  bool ask(const void* kernel, int device);

 private:
  static constexpr int kDevices = 64;  // beyond these CUDA is asked every time
  enum Answer { kUnknown, kNo, kYes };
  std::atomic<Answer> answers_[kDevices] = {};
};

}  // namespace resnet_fused::cuda
