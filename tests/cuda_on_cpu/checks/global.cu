// Global memory: bounds, alignment, read-only buffers, missing and repeated writes, races.
#include "check.h"

namespace cuda_on_cpu::checks {
namespace {

constexpr uint32_t kWords = kBlocks * kThreads;

__global__ void plain_load_out_of_bounds(const Check c) {
  // expect: global memory out of bounds
  c.out[thread_of_grid()] = c.in[thread_of_grid() + (c.bug ? 1 : 0)];
}
CHECK(plain_load_out_of_bounds);

// A plain store cannot be suppressed, so the launch is given up.
__global__ void plain_store_out_of_bounds(const Check c) {
  // expect: global memory out of bounds
  c.out[thread_of_grid() + (c.bug ? 1u << 28 : 0)] = 1;
}
CHECK(plain_store_out_of_bounds);

__global__ void null_pointer(const Check c) {
  const uint32_t* in = c.bug ? nullptr : c.in;
  // expect: global memory out of bounds
  c.out[thread_of_grid()] = in[thread_of_grid()];
}
CHECK(null_pointer);

__global__ void load_out_of_bounds(const Check c) {
  // expect: global memory out of bounds
  const float v = ptx::ld_global_nc_f32(c.in + thread_of_grid() + (c.bug ? 4 : 0));
  c.out[thread_of_grid()] = v > 0 ? 1 : 2;
}
CHECK(load_out_of_bounds);

__global__ void store_out_of_bounds(const Check c) {
  // expect: global memory out of bounds
  ptx::st_global_f32(c.out + static_cast<int>(thread_of_grid()) - (c.bug ? 1 : 0), 1.0f);
}  // expect anywhere: output never written
CHECK(store_out_of_bounds);

__global__ void misaligned_load(const Check c) {
  uint32_t words[4];
  // expect: global memory misaligned
  ptx::ld_global_nc_v4(words, c.in + thread_of_grid() / 4 * 4 - (c.bug && thread_of_grid() >= 4 ? 2 : 0));
  c.out[thread_of_grid()] = words[0];
}
CHECK(misaligned_load);

__global__ void misaligned_plain_load(const Check c) {
  const auto* pairs = reinterpret_cast<const uint2*>(c.in + (c.bug ? 1 : 0));
  // expect: global memory misaligned
  c.out[thread_of_grid()] = pairs[threadIdx.x / 4].x;
}
CHECK(misaligned_plain_load);

__global__ void plain_store_to_input(const Check c) {
  uint32_t* to = c.bug ? const_cast<uint32_t*>(c.in) : c.out;
  // expect: store to a read-only buffer
  to[thread_of_grid()] = 1;
}
CHECK(plain_store_to_input);

__global__ void store_to_input(const Check c) {
  write_output(c);
  // expect: store to a read-only buffer
  if (c.bug) ptx::st_global_f32(const_cast<uint32_t*>(c.in) + thread_of_grid(), 1.0f);
}
CHECK(store_to_input);

__global__ void written_twice(const Check c) {
  c.out[thread_of_grid()] = 1;
  // expect: global memory written twice
  if (c.bug && threadIdx.x == 9) c.out[thread_of_grid()] = 2;
}
CHECK(written_twice);

__global__ void written_by_two_blocks(const Check c) {
  // expect: global memory written twice
  c.out[c.bug ? threadIdx.x : thread_of_grid()] = 1;
}  // expect anywhere: output never written
CHECK(written_by_two_blocks);

__global__ void never_written(const Check c) {
  if (!c.bug || thread_of_grid() != 77) write_output(c);
}  // expect anywhere: output never written
CHECK(never_written);

__global__ void reads_its_output_too_early(const Check c) {
  uint32_t* cell = c.out + thread_of_grid();
  if (!c.bug) *cell = 5;
  // expect: read of global memory that was never written
  const uint32_t v = *cell;
  if (c.bug) *cell = v + 1;
}
CHECK(reads_its_output_too_early);

__global__ void scratch_never_written(const Check c) {
  if (!c.bug) c.scratch[thread_of_grid()] = 3;
  // expect: read of global memory that was never written
  c.out[thread_of_grid()] = c.scratch[thread_of_grid()];
}
CHECK(scratch_never_written);

__global__ void scratch_written_twice(const Check c) {
  write_output(c);
  c.scratch[0 * kWords + thread_of_grid()] = 3;
  // expect: global memory written twice
  if (c.bug) c.scratch[thread_of_grid()] = 4;
}
CHECK(scratch_written_twice);

// Two blocks are unordered.
__global__ void race_between_blocks(const Check c) {
  // expect: race: write after read
  c.scratch[thread_of_grid()] = 3;
  ptx::bar_sync_all();
  // expect: race: read after write, read of global memory that was never written
  c.out[thread_of_grid()] = c.scratch[(thread_of_grid() + (c.bug ? kThreads : 0)) % kWords];
}
CHECK(race_between_blocks);

// Two threads of a block need a barrier.
__global__ void race_within_a_block(const Check c) {
  // expect: race: write after read
  c.scratch[thread_of_grid()] = 3;
  if (!c.bug) ptx::bar_sync_all();
  // expect: race: read after write, read of global memory that was never written
  c.out[thread_of_grid()] = c.scratch[thread_of_grid() ^ 32];
}
CHECK(race_within_a_block);

// expect: ld.global.nc of what the kernel writes
__global__ void fill(const Check c) { c.scratch[thread_of_grid()] = 3; }

// What an earlier launch wrote is visible to all threads and may be read with ld.global.nc.
__global__ void read_only_load_of_what_is_written(const Check c) {
  // expect: ld.global.nc of what the kernel writes
  if (c.bug) c.scratch[thread_of_grid()] = 4;
  ptx::bar_sync_all();
  // expect: ld.global.nc of what the kernel writes
  const float v = ptx::ld_global_nc_f32(c.scratch + (kWords - 1 - thread_of_grid()));
  c.out[thread_of_grid()] = v > 0 ? 1 : 2;
}
CHECK_LAUNCHED(read_only_load_of_what_is_written, LAUNCH(fill, kBlocks, kThreads, 0, 0, c);
               LAUNCH(read_only_load_of_what_is_written, kBlocks, kThreads, 0, 0, c));

// A later launch may write scratch again.
__global__ void scratch_read_before_it_is_filled(const Check c) {
  // expect: read of global memory that was never written
  c.out[thread_of_grid()] = c.scratch[kWords - 1 - thread_of_grid()];
}
CHECK_LAUNCHED(
    scratch_read_before_it_is_filled, if (!c.bug) {
      LAUNCH(fill, kBlocks, kThreads, 0, 0, c);
      LAUNCH(fill, kBlocks, kThreads, 0, 0, c);
    } LAUNCH(scratch_read_before_it_is_filled, kBlocks, kThreads, 0, 0, c));

__global__ void single_bytes(const Check c) {
  if (c.bug)
    // expect: single bytes of global memory
    reinterpret_cast<unsigned char*>(c.out)[thread_of_grid()] = 1;
  else
    write_output(c);
}
CHECK(single_bytes);

// Reads another thread's local variable.
__global__ void passes_a_local_on(const Check c) {
  DYNAMIC_SMEM(smem);
  auto* pointers = reinterpret_cast<const uint32_t**>(smem);
  const uint32_t own = threadIdx.x;
  pointers[threadIdx.x] = &own;
  ptx::bar_sync_all();
  // expect: access to another thread's registers
  c.out[thread_of_grid()] = *pointers[threadIdx.x ^ (c.bug ? 1 : 0)];
}
CHECK(passes_a_local_on);

}  // namespace
}  // namespace cuda_on_cpu::checks
