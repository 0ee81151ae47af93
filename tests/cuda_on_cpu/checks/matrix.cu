// ldmatrix and mma: invalid rows, operands that are not rounded to tf32.
#include "check.h"
#include "cuda/device/ptx/math.cuh"

namespace cuda_on_cpu::checks {
namespace {

// Each warp fills and reads 512 bytes of its own.
__forceinline__ uint32_t fill(unsigned char* smem) {
  const uint32_t address = ptx::smem_address(smem) + threadIdx.x * 16;
  const uint32_t words[4] = {1, 2, 3, 4};
  ptx::st_shared_v4(address, words);
  return address;
}

__global__ void row_misaligned(const Check c) {
  DYNAMIC_SMEM(smem);
  const uint32_t row = fill(smem);
  ptx::bar_warp_sync(~0u);
  uint32_t d[4];
  // expect: shared memory misaligned
  ptx::ldmatrix_x4(d, row + (c.bug && threadIdx.x == 5 ? 8 : 0));
  c.out[thread_of_grid()] = d[0];
}
CHECK(row_misaligned);

__global__ void row_out_of_bounds(const Check c) {
  DYNAMIC_SMEM(smem);
  const uint32_t row = fill(smem);
  ptx::bar_warp_sync(~0u);
  uint32_t d[4];
  // expect: shared memory out of bounds
  ptx::ldmatrix_x4(d, row + (c.bug && threadIdx.x == 5 ? kSharedBytes : 0));
  c.out[thread_of_grid()] = d[0];
}
CHECK(row_out_of_bounds);

__global__ void row_never_written(const Check c) {
  DYNAMIC_SMEM(smem);
  const uint32_t row = fill(smem);
  ptx::bar_warp_sync(~0u);
  uint32_t d[4];
  // expect: read of shared memory that was never written
  ptx::ldmatrix_x4_trans(d, row + (c.bug && threadIdx.x >= 32 ? 512 : 0));
  c.out[thread_of_grid()] = d[0];
}
CHECK(row_never_written);

__global__ void row_of_another_warp(const Check c) {
  DYNAMIC_SMEM(smem);
  // expect: race: write after read
  const uint32_t row = fill(smem);
  if (c.bug)
    ptx::bar_warp_sync(~0u);
  else
    ptx::bar_sync_all();
  uint32_t d[4];
  // expect: race: read after write, read of shared memory that was never written
  ptx::ldmatrix_x4(d, ptx::smem_address(smem) + (row - ptx::smem_address(smem)) % 512);
  c.out[thread_of_grid()] = d[0];
}
CHECK(row_of_another_warp);

__global__ void not_every_lane(const Check c) {
  DYNAMIC_SMEM(smem);
  const uint32_t row = fill(smem);
  ptx::bar_warp_sync(~0u);
  uint32_t d[4] = {};
  // expect: mask names a lane that has exited, deadlock
  if (!c.bug || threadIdx.x % 32 != 31) ptx::ldmatrix_x4(d, row);
  c.out[thread_of_grid()] = d[0];
}
CHECK(not_every_lane);

__global__ void tf32_not_rounded(const Check c) {
  const float third = 1.0f / 3;
  const uint32_t v = c.bug ? ptx::mov_b32_f32(third) : ptx::cvt_rna_tf32_f32(third);
  const uint32_t a[4] = {v, v, v, v}, b[2] = {v, v};
  float d[4] = {};
  // expect: tf32 operand not rounded
  ptx::mma_m16n8k8_tf32(d, a, b);
  c.out[thread_of_grid()] = d[0] > 0.8f;
}
CHECK(tf32_not_rounded);

}  // namespace
}  // namespace cuda_on_cpu::checks
