// Overlapping grids: no access to global memory before griddepcontrol.wait, and no block that ends without it.
#include "check.h"
#include "cuda/device/ptx/grid.cuh"

namespace cuda_on_cpu::checks {
namespace {

__global__ void load_before_the_wait(const Check c) {
  if (!c.bug) ptx::griddepcontrol_wait();
  // expect: global memory before griddepcontrol.wait
  const uint32_t v = c.in[thread_of_grid()];
  ptx::griddepcontrol_wait();
  c.out[thread_of_grid()] = v;
}
CHECK_LAUNCHED(load_before_the_wait, LAUNCH_DEPENDENT(load_before_the_wait, kBlocks, kThreads, 0, 0, c));

// The previous grid may still read what this store overwrites.
__global__ void store_before_the_wait(const Check c) {
  if (!c.bug) ptx::griddepcontrol_wait();
  // expect: global memory before griddepcontrol.wait
  ptx::st_global_f32(c.out + thread_of_grid(), 1.0f);
  ptx::griddepcontrol_wait();
}
CHECK_LAUNCHED(store_before_the_wait, LAUNCH_DEPENDENT(store_before_the_wait, kBlocks, kThreads, 0, 0, c));

// A thread's wait covers only that thread.
__global__ void one_thread_waits(const Check c) {
  if (!c.bug || threadIdx.x == 0) ptx::griddepcontrol_wait();
  ptx::bar_sync_all();
  // expect: global memory before griddepcontrol.wait
  c.out[thread_of_grid()] = 1;
}
CHECK_LAUNCHED(one_thread_waits, LAUNCH_DEPENDENT(one_thread_waits, kBlocks, kThreads, 0, 0, c));

// The second block has no work. If it exits without waiting, later grids could start while the previous one still runs.
__global__ void a_block_leaves_early(const Check c) {
  // expect anywhere: no griddepcontrol.wait
  if (!c.bug) ptx::griddepcontrol_wait();
  if (blockIdx.x > 0) return;
  ptx::griddepcontrol_wait();
  ptx::st_global_f32(c.out + threadIdx.x, 1.0f);
  ptx::st_global_f32(c.out + kThreads + threadIdx.x, 1.0f);
}
CHECK_LAUNCHED(a_block_leaves_early, LAUNCH_DEPENDENT(a_block_leaves_early, kBlocks, kThreads, 0, 0, c));

// A plain LAUNCH needs no wait.
__global__ void plain_launch(const Check c) {
  // expect: global memory before griddepcontrol.wait
  c.out[thread_of_grid()] = 1;
  ptx::griddepcontrol_wait();
}
CHECK_LAUNCHED(plain_launch, if (c.bug) LAUNCH_DEPENDENT(plain_launch, kBlocks, kThreads, 0, 0, c);
               else LAUNCH(plain_launch, kBlocks, kThreads, 0, 0, c));

}  // namespace
}  // namespace cuda_on_cpu::checks
