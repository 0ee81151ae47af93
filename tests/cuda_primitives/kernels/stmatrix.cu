// stmatrix (sm_90).
#include "cuda/device/ptx/stmatrix.cuh"

#include "call.h"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/runtime/launch.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

// in: 4 registers per lane; out: 32 rows of 16 bytes. In shared memory the rows are permuted.
template <bool kTrans>
__global__ void __launch_bounds__(32) stmatrix_kernel(const char* in, char* out) {
  DYNAMIC_SMEM(smem);
  const uint32_t lane = threadIdx.x, row = ptx::smem_address(smem) + (lane * 5 + 3) % 32 * 16;
  uint32_t r[4];
  ptx::ld_global_v4(r, in + lane * 16);
  if constexpr (kTrans)
    ptx::stmatrix_x4_trans(row, r);
  else
    ptx::stmatrix_x4(row, r);
  ptx::bar_sync_all();
  ptx::ld_shared_v4(r, row);
  ptx::st_global_v4(out + lane * 16, r);
}

template <bool kTrans>
void stmatrix(const Call& c) {
  LAUNCH(stmatrix_kernel<kTrans>, 1, 32, 512, nullptr, static_cast<const char*>(c.in(0)), static_cast<char*>(c.out(1)));
}

const Primitive registered[] = {{"stmatrix_x4", stmatrix<false>}, {"stmatrix_x4_trans", stmatrix<true>}};

}  // namespace
}  // namespace cuda_primitives
