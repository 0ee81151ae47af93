// cp.async: copies that are used, overwritten or forgotten while they are in flight.
#include "check.h"

namespace cuda_on_cpu::checks {
namespace {

// Threads 0..15 copy 16 bytes each: together the block's input.
__forceinline__ void copy_input(const Check& c, uint32_t address) {
  if (threadIdx.x < 16)
    ptx::cp_async_cg_16(address + threadIdx.x * 16, c.in + blockIdx.x * kThreads + threadIdx.x * 4, true);
}

__global__ void no_wait(const Check c) {
  DYNAMIC_SMEM(smem);
  copy_input(c, ptx::smem_address(smem));
  ptx::cp_async_commit_group();
  if (!c.bug) ptx::cp_async_wait_group<0>();
  ptx::bar_sync_all();
  // expect: read of shared memory with a copy in flight, race: read after write
  c.out[thread_of_grid()] = reinterpret_cast<uint32_t*>(smem)[threadIdx.x];
  ptx::cp_async_wait_group<0>();
}
CHECK(no_wait);

__global__ void waits_for_a_group_too_few(const Check c) {
  DYNAMIC_SMEM(smem);
  const uint32_t address = ptx::smem_address(smem);
  copy_input(c, address);
  ptx::cp_async_commit_group();
  copy_input(c, address + 1024);
  ptx::cp_async_commit_group();
  if (c.bug)
    ptx::cp_async_wait_group<2>();
  else
    ptx::cp_async_wait_group<1>();
  ptx::bar_sync_all();
  // expect: read of shared memory with a copy in flight, race: read after write
  c.out[thread_of_grid()] = reinterpret_cast<uint32_t*>(smem)[threadIdx.x];
  ptx::cp_async_wait_group<0>();
}
CHECK(waits_for_a_group_too_few);

__global__ void waits_before_it_commits(const Check c) {
  DYNAMIC_SMEM(smem);
  copy_input(c, ptx::smem_address(smem));
  if (!c.bug) ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  if (c.bug) ptx::cp_async_commit_group();
  ptx::bar_sync_all();
  // expect: read of shared memory with a copy in flight, race: read after write
  c.out[thread_of_grid()] = reinterpret_cast<uint32_t*>(smem)[threadIdx.x];
  ptx::cp_async_wait_group<0>();
}
CHECK(waits_before_it_commits);

// A wait covers only the thread's own copies; other threads' copies also need a barrier.
__global__ void wait_is_no_barrier(const Check c) {
  DYNAMIC_SMEM(smem);
  // expect: race: write after read
  copy_input(c, ptx::smem_address(smem));
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  if (!c.bug) ptx::bar_sync_all();
  // expect: race: read after write, read of shared memory that was never written, read of shared memory with a copy in
  // flight
  c.out[thread_of_grid()] = reinterpret_cast<uint32_t*>(smem)[threadIdx.x];
}
CHECK(wait_is_no_barrier);

__global__ void writes_over_a_copy(const Check c) {
  DYNAMIC_SMEM(smem);
  copy_input(c, ptx::smem_address(smem));
  ptx::cp_async_commit_group();
  if (!c.bug) ptx::cp_async_wait_group<0>();
  ptx::bar_sync_all();
  // expect: write over a copy in flight, race: write after write
  reinterpret_cast<uint32_t*>(smem)[threadIdx.x] = 1;
  ptx::cp_async_wait_group<0>();
  write_output(c);
}
CHECK(writes_over_a_copy);

__global__ void copies_over_what_is_read(const Check c) {
  DYNAMIC_SMEM(smem);
  const uint32_t address = ptx::smem_address(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  words[threadIdx.x] = 1;
  ptx::bar_sync_all();
  // expect: read of shared memory with a copy in flight, race: read after write
  c.out[thread_of_grid()] = words[threadIdx.x];
  if (!c.bug) ptx::bar_sync_all();
  if (threadIdx.x < 16) {
    const uint32_t* source = c.in + blockIdx.x * kThreads + threadIdx.x * 4;
    // expect: race: write after read
    ptx::cp_async_cg_16(address + threadIdx.x * 16, source, true);
  }
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
}
CHECK(copies_over_what_is_read);

__global__ void in_flight_at_exit(const Check c) {
  DYNAMIC_SMEM(smem);
  write_output(c);
  const uint32_t* source = c.in + blockIdx.x * kThreads + threadIdx.x / 4 * 4;
  // expect: cp.async in flight when its thread exits
  ptx::cp_async_cg_16(ptx::smem_address(smem) + threadIdx.x * 16, source, true);
  ptx::cp_async_commit_group();
  if (!c.bug) ptx::cp_async_wait_group<0>();
}
CHECK(in_flight_at_exit);

// If `valid` is false, the source may be any address and zeros are written.
__global__ void source_out_of_bounds(const Check c) {
  DYNAMIC_SMEM(smem);
  const bool beyond = threadIdx.x == 15 && blockIdx.x == kBlocks - 1;
  if (threadIdx.x < 16) {
    const uint32_t* source = c.in + blockIdx.x * kThreads + threadIdx.x * 4 + (beyond ? 4 : 0);
    // expect: global memory out of bounds
    ptx::cp_async_cg_16(ptx::smem_address(smem) + threadIdx.x * 16, source, c.bug || !beyond);
  }
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  ptx::bar_sync_all();
  c.out[thread_of_grid()] = reinterpret_cast<uint32_t*>(smem)[threadIdx.x];
}
CHECK(source_out_of_bounds);

__global__ void source_misaligned(const Check c) {
  DYNAMIC_SMEM(smem);
  // expect: global memory misaligned
  ptx::cp_async_cg_16(ptx::smem_address(smem) + threadIdx.x * 16, c.in + (c.bug ? 2 : 4), true);
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  write_output(c);
}
CHECK(source_misaligned);

__global__ void destination_misaligned(const Check c) {
  DYNAMIC_SMEM(smem);
  // expect: shared memory misaligned
  ptx::cp_async_cg_16(ptx::smem_address(smem) + threadIdx.x * 16 + (c.bug ? 8 : 0), c.in, true);
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  write_output(c);
}
CHECK(destination_misaligned);

__global__ void destination_out_of_bounds(const Check c) {
  DYNAMIC_SMEM(smem);
  const uint32_t offset = threadIdx.x * 16 + (c.bug ? kSharedBytes - 512 : 0);
  // expect: shared memory out of bounds
  ptx::cp_async_cg_16(ptx::smem_address(smem) + offset, c.in, true);
  ptx::cp_async_commit_group();
  ptx::cp_async_wait_group<0>();
  write_output(c);
}
CHECK(destination_out_of_bounds);

}  // namespace
}  // namespace cuda_on_cpu::checks
