// mbarrier: a ring of two stages between two warps, through many phases (sm_90).
#include "cuda/device/ptx/mbarrier.cuh"

#include "call.h"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/runtime/launch.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

constexpr uint32_t kStages = 2, kStageBytes = 512, kFull = kStages * kStageBytes, kEmpty = kFull + 8 * kStages;
constexpr uint32_t kRingBytes = kEmpty + 8 * kStages;

// in: `steps` times 32 lanes of 16 bytes; out: the same with each step's lanes reversed.
__global__ void __launch_bounds__(64) mbarrier_kernel(const char* in, char* out, uint32_t steps) {
  DYNAMIC_SMEM(smem);
  const uint32_t base = ptx::smem_address(smem), lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (uint32_t s = 0; s < 2 * kStages; ++s) ptx::mbarrier_init(base + kFull + 8 * s, 32);
    ptx::fence_mbarrier_init();
  }
  ptx::bar_sync_all();
  for (uint32_t step = 0; step < steps; ++step) {
    const uint32_t stage = step % kStages, parity = step / kStages % 2, place = base + stage * kStageBytes;
    const uint32_t full = base + kFull + 8 * stage, empty = base + kEmpty + 8 * stage;
    uint32_t r[4];
    if (threadIdx.x < 32) {
      ptx::mbarrier_wait_parity(empty, parity ^ 1);  // returns at once in the first round: phase -1 counts as complete
      ptx::ld_global_v4(r, in + (step * 32 + lane) * 16);
      ptx::st_shared_v4(place + lane * 16, r);
      ptx::mbarrier_arrive(full);
    } else {
      ptx::mbarrier_wait_parity(full, parity);
      ptx::ld_shared_v4(r, place + (lane ^ 31) * 16);
      ptx::mbarrier_arrive(empty);
      ptx::st_global_v4(out + (step * 32 + lane) * 16, r);
    }
  }
  // Reuse the same bytes for another mbarrier, which all threads pass once.
  ptx::bar_sync_all();
  if (threadIdx.x == 0) {
    ptx::mbarrier_inval(base + kFull);
    ptx::mbarrier_init(base + kFull, 64);
  }
  ptx::bar_sync_all();
  ptx::mbarrier_arrive(base + kFull);
  ptx::mbarrier_wait_parity(base + kFull, 0);
}

void mbarrier(const Call& c) {
  LAUNCH(mbarrier_kernel, 1, 64, static_cast<int>(kRingBytes), nullptr, static_cast<const char*>(c.in(0)),
         static_cast<char*>(c.out(1)), static_cast<uint32_t>(c.numbers[0]));
}

const Primitive registered[] = {{"mbarrier_ring", mbarrier}};

}  // namespace
}  // namespace cuda_primitives
