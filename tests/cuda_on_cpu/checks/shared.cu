// Shared memory: races, uninitialised reads, bounds, alignment.
#include "check.h"

namespace cuda_on_cpu::checks {
namespace {

__global__ void read_after_write(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  // expect: race: write after read
  words[threadIdx.x] = threadIdx.x;
  if (!c.bug) ptx::bar_sync_all();
  // expect: race: read after write, read of shared memory that was never written
  c.out[thread_of_grid()] = words[threadIdx.x ^ 32];
}
CHECK(read_after_write);

__global__ void write_after_write(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  // expect: race: write after write
  words[c.bug ? 5 : threadIdx.x] = threadIdx.x;
  write_output(c);
}
CHECK(write_after_write);

__global__ void write_after_read(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  words[threadIdx.x] = 1;
  ptx::bar_sync_all();
  // expect: race: read after write
  c.out[thread_of_grid()] = words[threadIdx.x ^ 32];
  if (!c.bug) ptx::bar_sync_all();
  // expect: race: write after read
  words[threadIdx.x] = 2;
}
CHECK(write_after_read);

// More readers than a cell stores; all but one are ordered before the write.
__global__ void write_after_read_by_many(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  if (threadIdx.x == 0) words[0] = 1;
  ptx::bar_sync_all();
  const bool late = c.bug && threadIdx.x == 40;
  uint32_t seen = 0;
  if (!late) seen = words[0];
  ptx::bar_sync_all();
  // expect: race: read after write
  if (late) seen = words[0];
  // expect: race: write after read
  if (threadIdx.x == 3) words[0] = 2;
  c.out[thread_of_grid()] = seen;
}
CHECK(write_after_read_by_many);

// Different words of the same 16 bytes are independent.
__global__ void race_within_a_cell(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  words[threadIdx.x] = 1;
  ptx::bar_sync_all();
  // expect: race: read after write, race: write after write
  words[threadIdx.x] += 1;
  // expect: race: write after write, race: write after read
  if (c.bug && threadIdx.x == 1) words[2] = 7;
  write_output(c);
}
CHECK(race_within_a_cell);

// A barrier of a single warp does not order it after the other warp.
__global__ void half_a_barrier(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  // expect: race: write after read
  words[threadIdx.x] = 1;
  if (c.bug)
    ptx::bar_sync(1 + threadIdx.x / 32, 32);
  else
    ptx::bar_sync(1, 64);
  // expect: race: read after write, read of shared memory that was never written
  c.out[thread_of_grid()] = words[63 - threadIdx.x];
}
CHECK(half_a_barrier);

__global__ void no_warp_sync(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  // expect: race: write after read
  words[threadIdx.x] = threadIdx.x;
  if (!c.bug) ptx::bar_warp_sync(~0u);
  // expect: race: read after write, read of shared memory that was never written
  c.out[thread_of_grid()] = words[threadIdx.x ^ 1];
}
CHECK(no_warp_sync);

// A shuffle does not order memory accesses of its lanes.
__global__ void shuffle_is_no_fence(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  words[threadIdx.x] = threadIdx.x;
  if (!c.bug) ptx::bar_warp_sync(~0u);
  const uint32_t other = ptx::shfl_bfly(~0u, threadIdx.x, 1);
  // expect: race: read after write
  c.out[thread_of_grid()] = words[other];
}
CHECK(shuffle_is_no_fence);

__global__ void never_written(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  if (!c.bug || threadIdx.x != 7) words[threadIdx.x] = 1;
  // expect: read of shared memory that was never written
  c.out[thread_of_grid()] = words[threadIdx.x];
}
CHECK(never_written);

// Every block starts with fresh shared memory.
__global__ void left_by_another_block(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  if (!c.bug || blockIdx.x == 0) words[threadIdx.x] = 1;
  // expect: read of shared memory that was never written
  c.out[thread_of_grid()] = words[threadIdx.x];
}
CHECK(left_by_another_block);

__global__ void out_of_bounds_store(const Check c) {
  DYNAMIC_SMEM(smem);
  // expect: shared memory out of bounds
  reinterpret_cast<uint32_t*>(smem)[threadIdx.x + (c.bug ? kSharedBytes / 4 - 63 : 0)] = 1;
  write_output(c);
}
CHECK(out_of_bounds_store);

__global__ void out_of_bounds_load(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  words[threadIdx.x] = 1;
  // expect: shared memory out of bounds
  c.out[thread_of_grid()] = words[static_cast<int>(threadIdx.x) - (c.bug ? 1000 : 0)];
}
CHECK(out_of_bounds_load);

__global__ void out_of_bounds_vector(const Check c) {
  DYNAMIC_SMEM(smem);
  const uint32_t words[4] = {1, 2, 3, 4};
  uint32_t back[4];
  const uint32_t address = ptx::smem_address(smem) + threadIdx.x * 16 + (c.bug ? kSharedBytes - 1024 + 16 : 0);
  // expect: shared memory out of bounds
  ptx::st_shared_v4(address, words);
  // expect: shared memory out of bounds
  ptx::ld_shared_v4(back, address);
  c.out[thread_of_grid()] = back[2];
}
CHECK(out_of_bounds_vector);

__global__ void misaligned(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* place = reinterpret_cast<uint2*>(smem + threadIdx.x * 16 + (c.bug ? 4 : 0));
  // expect: shared memory misaligned
  *place = make_uint2(1, 2);
  write_output(c);
}
CHECK(misaligned);

__global__ void misaligned_vector(const Check c) {
  DYNAMIC_SMEM(smem);
  const uint32_t words[4] = {1, 2, 3, 4};
  // expect: shared memory misaligned, shared memory out of bounds
  ptx::st_shared_v4(ptx::smem_address(smem) + threadIdx.x * 16 + (c.bug ? 8 : 0), words);
  write_output(c);
}
CHECK(misaligned_vector);

__global__ void single_bytes(const Check c) {
  DYNAMIC_SMEM(smem);
  if (c.bug)
    // expect: single bytes of shared memory
    smem[threadIdx.x] = 1;
  else
    reinterpret_cast<uint16_t*>(smem)[threadIdx.x] = 1;
  write_output(c);
}
CHECK(single_bytes);

}  // namespace
}  // namespace cuda_on_cpu::checks
