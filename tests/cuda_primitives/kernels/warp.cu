// ldmatrix, cp.async with zero fill, and shuffles of one warp (sm_80).
#include "call.h"
#include "cuda/device/ptx/cp_async.cuh"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/mma.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/runtime/launch.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

// Permutes rows of 16 bytes, so that ignoring an address gives a wrong result.
__device__ __forceinline__ uint32_t place_of(uint32_t row) { return (row * 5 + 3) % 32 * 16; }

// in: 32 rows of 16 bytes; out: 4 registers per lane.
template <bool kTrans>
__global__ void __launch_bounds__(32) ldmatrix_kernel(const char* in, char* out) {
  DYNAMIC_SMEM(smem);
  const uint32_t lane = threadIdx.x, row = ptx::smem_address(smem) + place_of(lane);
  uint32_t r[4];
  ptx::ld_global_v4(r, in + lane * 16);
  ptx::st_shared_v4(row, r);
  ptx::bar_sync_all();
  if constexpr (kTrans)
    ptx::ldmatrix_x4_trans(r, row);
  else
    ptx::ldmatrix_x4(r, row);
  ptx::st_global_v4(out + lane * 16, r);
}

// in: two groups of 32 rows of 16 bytes; out: the same, with zeros where the lane's bit of `valid` is 0.
__global__ void __launch_bounds__(32) cp_async_kernel(const char* in, char* out, uint32_t valid) {
  DYNAMIC_SMEM(smem);
  const uint32_t lane = threadIdx.x, base = ptx::smem_address(smem);
  for (uint32_t group = 0; group < 2; ++group) {
    const uint32_t row = group * 32 + lane;
    ptx::cp_async_cg_16(base + group * 512 + place_of(lane), in + row * 16, valid >> lane & 1);
    ptx::cp_async_commit_group();
  }
  uint32_t r[4];
  ptx::cp_async_wait_group<1>();
  ptx::bar_sync_all();
  ptx::ld_shared_v4(r, base + place_of(lane ^ 31));  // another lane's copy
  ptx::st_global_v4(out + (lane ^ 31) * 16, r);
  ptx::cp_async_wait_group<0>();
  ptx::bar_sync_all();
  ptx::ld_shared_v4(r, base + 512 + place_of(lane ^ 31));
  ptx::st_global_v4(out + 512 + (lane ^ 31) * 16, r);
}

// in: 4 words per lane, a value and three lanes; out: 8 words per lane, shfl_idx from the three lanes, then shfl_bfly
// by 1, 2, 4, 8 and 16.
__global__ void __launch_bounds__(32) shuffle_kernel(const char* in, char* out) {
  const uint32_t lane = threadIdx.x, all = 0xffffffff;
  uint32_t r[4], lo[4], hi[4];
  ptx::ld_global_v4(r, in + lane * 16);
  for (int i = 0; i < 3; ++i) lo[i] = ptx::shfl_idx(all, r[0], r[1 + i]);
  lo[3] = ptx::shfl_bfly(all, r[0], 1);
  for (int i = 0; i < 4; ++i) hi[i] = ptx::shfl_bfly(all, r[0], 2u << i);
  ptx::st_global_v4(out + lane * 32, lo);
  ptx::st_global_v4(out + lane * 32 + 16, hi);
}

template <bool kTrans>
void ldmatrix(const Call& c) {
  LAUNCH(ldmatrix_kernel<kTrans>, 1, 32, 512, nullptr, static_cast<const char*>(c.in(0)), static_cast<char*>(c.out(1)));
}

void cp_async(const Call& c) {
  LAUNCH(cp_async_kernel, 1, 32, 1024, nullptr, static_cast<const char*>(c.in(0)), static_cast<char*>(c.out(1)),
         static_cast<uint32_t>(c.numbers[0]));
}

void shuffle(const Call& c) {
  LAUNCH(shuffle_kernel, 1, 32, 0, nullptr, static_cast<const char*>(c.in(0)), static_cast<char*>(c.out(1)));
}

const Primitive registered[] = {{"ldmatrix_x4", ldmatrix<false>},
                                {"ldmatrix_x4_trans", ldmatrix<true>},
                                {"cp_async", cp_async},
                                {"shuffle", shuffle}};

}  // namespace
}  // namespace cuda_primitives
