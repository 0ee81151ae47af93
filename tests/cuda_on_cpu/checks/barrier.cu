// Block and warp barriers: arrivals, missing arrivals, thread counts.
#include "check.h"

namespace cuda_on_cpu::checks {
namespace {

__global__ void in_two_places(const Check c) {
  if (c.bug && threadIdx.x < 32)
    // expect: barrier of the block reached in two places at once
    ptx::bar_sync_all();
  else
    // expect: barrier of the block reached in two places at once
    ptx::bar_sync_all();
  write_output(c);
}
CHECK_LAUNCHED(in_two_places, LAUNCH(in_two_places, kBlocks, kThreads, 0, 0, c));

// A barrier ignores exited warps but waits for a warp that is blocked at another barrier.
__global__ void waits_elsewhere(const Check c) {
  write_output(c);
  if (c.bug && threadIdx.x < 32)
    // expect: deadlock
    ptx::bar_sync(1, 64);
  else
    // expect: deadlock
    ptx::bar_sync_all();
}
CHECK(waits_elsewhere);

__global__ void nobody_arrives(const Check c) {
  write_output(c);
  if (threadIdx.x < 32)
    // expect: deadlock
    ptx::bar_sync(3, 64);
  else if (!c.bug)
    ptx::bar_arrive(3, 64);
}
CHECK(nobody_arrives);

__global__ void two_counts(const Check c) {
  if (threadIdx.x < 32)
    // expect: barrier with two thread counts, deadlock
    ptx::bar_sync(2, 64);
  else
    // expect: barrier with two thread counts, deadlock
    ptx::bar_sync(2, c.bug ? 32 : 64);
  write_output(c);
}
CHECK(two_counts);

__global__ void invalid_barrier(const Check c) {
  // expect: invalid barrier
  ptx::bar_sync(c.bug ? 16 : 15, 64);
  write_output(c);
}
CHECK(invalid_barrier);

__global__ void invalid_count(const Check c) {
  // expect: invalid barrier
  ptx::bar_sync(1, c.bug ? 60 : 64);
  write_output(c);
}
CHECK(invalid_count);

// A thread that only arrives is not ordered after the others.
__global__ void arrive_does_not_wait(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* words = reinterpret_cast<uint32_t*>(smem);
  // expect: race: write after read
  words[threadIdx.x] = threadIdx.x;
  if (threadIdx.x < 32 || !c.bug)
    ptx::bar_sync(1, 64);
  else
    ptx::bar_arrive(1, 64);
  // expect: race: read after write, read of shared memory that was never written
  c.out[thread_of_grid()] = words[threadIdx.x ^ 32];
}
CHECK(arrive_does_not_wait);

// ---- warps

__global__ void not_in_its_own_mask(const Check c) {
  // expect: lane is not in its own mask, deadlock
  ptx::bar_warp_sync(c.bug ? 0x0000ffffu : ~0u);
  write_output(c);
}
CHECK(not_in_its_own_mask);

__global__ void mask_names_the_dead(const Check c) {
  write_output(c);
  if (threadIdx.x % 32 >= 16) return;
  // expect: mask names a lane that has exited, deadlock
  ptx::bar_warp_sync(c.bug ? ~0u : 0xffffu);
}
CHECK(mask_names_the_dead);

__global__ void half_a_warp_waits(const Check c) {
  write_output(c);
  // expect: deadlock
  if (threadIdx.x % 32 < 16) ptx::bar_warp_sync(c.bug ? ~0u : 0xffffu);
  // expect: deadlock
  ptx::bar_sync_all();
}
CHECK(half_a_warp_waits);

__global__ void divergent(const Check c) {
  uint32_t v = threadIdx.x;
  if (c.bug && threadIdx.x % 2)
    // expect: warp instruction reached divergently
    ptx::bar_warp_sync(~0u);
  else
    // expect: warp instruction reached divergently
    v = ptx::shfl_bfly(~0u, v, 1);
  c.out[thread_of_grid()] = v;
}
CHECK_LAUNCHED(divergent, LAUNCH(divergent, kBlocks, kThreads, 0, 0, c));

// The halves of a warp may diverge if each uses a mask of only its own lanes.
__global__ void overlapping_masks(const Check c) {
  const bool low = threadIdx.x % 32 < 16;
  const uint32_t mask = low ? 0xffffu : c.bug ? 0xffff8000u : 0xffff0000u;
  // expect: warp instruction reached divergently, mask names a lane that has exited, deadlock
  c.out[thread_of_grid()] = ptx::shfl_bfly(mask, threadIdx.x, 1);
}
CHECK(overlapping_masks);

__global__ void shuffle_from_outside(const Check c) {
  uint32_t v = threadIdx.x;
  // expect: shuffle from a lane outside the mask
  if (threadIdx.x % 32 < 16) v = ptx::shfl_idx(0xffffu, v, c.bug ? 20 : 3);
  c.out[thread_of_grid()] = v;
}
CHECK(shuffle_from_outside);

}  // namespace
}  // namespace cuda_on_cpu::checks
