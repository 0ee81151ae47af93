// sm_90 instructions that move no data: elect.sync, griddepcontrol.wait, setmaxnreg.
#include "runtime/block.h"
#include "runtime/instructions_sm90.h"
#include "runtime/report.h"
#include "runtime/thread.h"
#include "runtime/warp.h"

namespace cuda_on_cpu {

namespace {

constexpr Collective kElect{"elect.sync", [](Warp&, uint32_t, Place) {}};

constexpr Collective kSetMaxNReg{"setmaxnreg", [](Warp& warp, uint32_t, Place place) {
                                   const int registers = warp.argument<int>(0);
                                   if (registers % 8 || registers < 24 || registers > 256)
                                     report("setmaxnreg: bad count", {place}, registers, " registers");
                                 }};

}  // namespace

bool elect_one() {
  meet(kElect, kAllLanes, nullptr, CUDA_ON_CPU_CALLER);
  return this_thread().lane == 0;
}

void griddepcontrol_wait() { this_thread().waited_for_grids = true; }

void setmaxnreg(int registers) { meet(kSetMaxNReg, kAllLanes, &registers, CUDA_ON_CPU_CALLER); }

}  // namespace cuda_on_cpu
