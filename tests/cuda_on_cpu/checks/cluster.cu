// Clusters: remote arrivals, writes to other blocks' shared memory, and blocks that have exited.
#include "cuda/device/ptx/cluster.cuh"

#include "check.h"
#include "cuda/device/ptx/mbarrier.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/runtime/launch.h"

namespace cuda_on_cpu::checks {
namespace {

using resnet_fused::cuda::TensorMap;

constexpr uint32_t kBarrier = 1024, kBox = 512;  // offset of an mbarrier; bytes of the box at offset 0

#define CHECK_CLUSTER(name) CHECK_LAUNCHED(name, LAUNCH_CLUSTER(name, 2, kBlocks, kThreads, kSharedBytes, 0, c))
#define CHECK_MULTICAST(name) \
  CHECK_LAUNCHED(name, LAUNCH_CLUSTER(name, 2, kBlocks, kThreads, kSharedBytes, 0, c, map_of(c.in)))

// A map of `in` as 8 rows of 16 words; one box covers it.
TensorMap map_of(const uint32_t* in) {
  resnet_fused::cuda::TensorShape shape;
  shape.base = in, shape.dtype = resnet_fused::cuda::Dtype::kFloat32, shape.rank = 2;
  shape.size[0] = 16, shape.size[1] = 8, shape.stride[1] = 64;
  resnet_fused::cuda::TiledBox box;
  box.box[0] = 16, box.box[1] = 8;
  return encode_tiled(shape, box);
}

__forceinline__ void cluster_sync() {
  ptx::cluster_arrive();
  ptx::cluster_wait();
}

// Initialises one mbarrier per block and synchronises the cluster.
__forceinline__ uint32_t make_barrier(unsigned char* memory, uint32_t count) {
  const uint32_t barrier = ptx::smem_address(memory) + kBarrier;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(barrier, count);
    ptx::fence_mbarrier_init();
  }
  cluster_sync();
  return barrier;
}

__global__ void arrives_twice(const Check c) {
  write_output(c);
  ptx::cluster_arrive();
  // expect: barrier.cluster: arrived twice
  if (c.bug) ptx::cluster_arrive();
  ptx::cluster_wait();
}
CHECK_CLUSTER(arrives_twice);

__global__ void waits_without_arriving(const Check c) {
  write_output(c);
  if (!c.bug || threadIdx.x) ptx::cluster_arrive();
  // expect: barrier.cluster: wait without an arrival
  ptx::cluster_wait();
}
CHECK_CLUSTER(waits_without_arriving);

// barrier.cluster ignores exited threads but waits for threads that are blocked at another barrier.
__global__ void one_block_waits_elsewhere(const Check c) {
  write_output(c);
  if (threadIdx.x == 5) return;
  if (c.bug && blockIdx.x == 1 && threadIdx.x < 32)
    // expect: deadlock
    ptx::bar_sync(1, 64);
  ptx::cluster_arrive();
  // expect: deadlock
  ptx::cluster_wait();
}
CHECK_CLUSTER(one_block_waits_elsewhere);

__global__ void no_such_rank(const Check c) {
  DYNAMIC_SMEM(memory);
  const uint32_t barrier = make_barrier(memory, 1);
  write_output(c);
  if (threadIdx.x == 0) {
    const uint32_t there = ptx::mapa(barrier, c.bug ? 2 : 1 - ptx::cluster_rank());
    // expect: cluster: no such block
    ptx::mbarrier_arrive_cluster(there);
  }
  cluster_sync();
}
CHECK_CLUSTER(no_such_rank);

// A remote arrival needs a cluster barrier after the init of the other block's mbarrier; a block barrier is not enough.
__global__ void before_the_barriers_are_made(const Check c) {
  DYNAMIC_SMEM(memory);
  const uint32_t barrier = ptx::smem_address(memory) + kBarrier;
  if (threadIdx.x == 0) {
    ptx::mbarrier_init(barrier, 1);
    ptx::fence_mbarrier_init();
  }
  if (c.bug)
    ptx::bar_sync_all();
  else
    cluster_sync();
  write_output(c);
  if (threadIdx.x == 0) {
    // expect: mbarrier: used without a barrier after its init, mbarrier: not initialised
    ptx::mbarrier_arrive_cluster(ptx::mapa(barrier, 1 - ptx::cluster_rank()));
  }
  cluster_sync();
}
CHECK_CLUSTER(before_the_barriers_are_made);

__global__ void leaves_too_early(const Check c) {
  DYNAMIC_SMEM(memory);
  const uint32_t barrier = make_barrier(memory, 2);
  write_output(c);
  if (threadIdx.x == 0)
    // expect: cluster: the block may have exited
    ptx::mbarrier_arrive_cluster(ptx::mapa(barrier, 1 - ptx::cluster_rank()));
  if (!c.bug) cluster_sync();
}
CHECK_CLUSTER(leaves_too_early);

// A wait for a remote arrival orders the block's exit after that arrival.
__global__ void an_arrival_orders(const Check c) {
  DYNAMIC_SMEM(memory);
  const uint32_t barrier = make_barrier(memory, 1);
  write_output(c);
  if (threadIdx.x == 0)
    // expect: cluster: the block may have exited
    ptx::mbarrier_arrive_cluster(ptx::mapa(barrier, 1 - ptx::cluster_rank()));
  if (!c.bug) ptx::mbarrier_wait_parity(barrier, 0);
}
CHECK_CLUSTER(an_arrival_orders);

// Rank 0 loads the box into both blocks; each waits on its own mbarrier.
__global__ void multicast_mask(const Check c, const __grid_constant__ TensorMap map) {
  DYNAMIC_SMEM(memory);
  const uint32_t box = ptx::smem_address(memory), barrier = make_barrier(memory, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(barrier, kBox);
    if (ptx::cluster_rank() == 0)
      // expect: cluster: no such block
      ptx::tma_load_multicast_2d(box, map, barrier, 0, 0, c.bug ? 7 : 3);
  }
  ptx::mbarrier_wait_parity(barrier, 0);
  write_output(c);
  cluster_sync();
}
CHECK_MULTICAST(multicast_mask);

__global__ void multicast_leaves_a_block_out(const Check c, const __grid_constant__ TensorMap map) {
  DYNAMIC_SMEM(memory);
  const uint32_t box = ptx::smem_address(memory), barrier = make_barrier(memory, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(barrier, kBox);
    if (ptx::cluster_rank() == 0) ptx::tma_load_multicast_2d(box, map, barrier, 0, 0, c.bug ? 1 : 3);
  }
  // expect: deadlock
  ptx::mbarrier_wait_parity(barrier, 0);
  write_output(c);
  ptx::cluster_arrive();
  // expect: deadlock
  ptx::cluster_wait();
}
CHECK_MULTICAST(multicast_leaves_a_block_out);

// Block 0 may overwrite the box that block 1 reads only after block 1 has arrived on `free`.
__global__ void multicast_over_what_is_read(const Check c, const __grid_constant__ TensorMap map) {
  DYNAMIC_SMEM(memory);
  const uint32_t box = ptx::smem_address(memory), free = ptx::smem_address(memory) + kBarrier + 8;
  if (threadIdx.x == 0) ptx::mbarrier_init(free, 2 * kThreads);
  const uint32_t full = make_barrier(memory, 1);
  for (uint32_t round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) {
      if (round && !c.bug) ptx::mbarrier_wait_parity(free, 0);
      ptx::mbarrier_arrive_expect_tx(full, kBox);
      // expect: race: write after read, race: write after write, write over a copy in flight,
      // mbarrier: more bytes than expected
      if (ptx::cluster_rank() == 0) ptx::tma_load_multicast_2d(box, map, full, 0, 0, 3);
    }
    // expect: deadlock
    ptx::mbarrier_wait_parity(full, round);
    uint32_t words[4];
    // expect: race: read after write, read of shared memory with a copy in flight
    ptx::ld_shared_v4(words, box + threadIdx.x % 32 * 16);
    for (uint32_t rank = 0; rank < 2; ++rank) ptx::mbarrier_arrive_cluster(ptx::mapa(free, rank));
  }
  write_output(c);
  ptx::cluster_arrive();
  // expect: deadlock
  ptx::cluster_wait();
}
CHECK_MULTICAST(multicast_over_what_is_read);

// The box lands in a block that has not waited for it.
__global__ void multicast_to_one_that_left(const Check c, const __grid_constant__ TensorMap map) {
  DYNAMIC_SMEM(memory);
  const uint32_t box = ptx::smem_address(memory), barrier = make_barrier(memory, 1);
  if (threadIdx.x == 0) {
    ptx::mbarrier_arrive_expect_tx(barrier, kBox);
    // expect: cluster: the block may have exited
    if (ptx::cluster_rank() == 0) ptx::tma_load_multicast_2d(box, map, barrier, 0, 0, 3);
  }
  if (!c.bug || ptx::cluster_rank() == 0) ptx::mbarrier_wait_parity(barrier, 0);
  write_output(c);
}
CHECK_MULTICAST(multicast_to_one_that_left);

}  // namespace
}  // namespace cuda_on_cpu::checks
