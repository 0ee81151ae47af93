// TMA: loads one box to shared memory and copies it out; stores boxes from shared memory to a tensor (sm_90).
#include "cuda/device/ptx/tma.cuh"

#include "call.h"
#include "cuda/device/ptx/control.cuh"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/grid.cuh"
#include "cuda/device/ptx/mbarrier.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/runtime/launch.h"
#include "tensor_numbers.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

enum class Load { kTile2d, kTile3d, kTile4d, kIm2col };

struct Place {
  int32_t c[4];
  uint16_t offset_w, offset_h;
};

// out: the box as stored in shared memory.
template <Load kLoad>
__global__ void __launch_bounds__(32)
    tma_load_kernel(const __grid_constant__ TensorMap map, const Place at, uint32_t bytes, char* out) {
  DYNAMIC_SMEM(smem);
  const uint32_t box = ptx::smem_address(smem), barrier = box + bytes;
  const bool elected = ptx::elect_one();
  if (elected) {
    ptx::prefetch_tensormap(map);
    ptx::mbarrier_init(barrier, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::griddepcontrol_wait();
  ptx::bar_sync_all();
  if (elected) {
    ptx::mbarrier_arrive_expect_tx(barrier, bytes);
    if constexpr (kLoad == Load::kTile2d)
      ptx::tma_load_2d(box, map, barrier, at.c[0], at.c[1]);
    else if constexpr (kLoad == Load::kTile3d)
      ptx::tma_load_3d(box, map, barrier, at.c[0], at.c[1], at.c[2]);
    else if constexpr (kLoad == Load::kTile4d)
      ptx::tma_load_4d(box, map, barrier, at.c[0], at.c[1], at.c[2], at.c[3]);
    else
      ptx::tma_load_im2col_4d(box, map, barrier, at.c[0], at.c[1], at.c[2], at.c[3], at.offset_w, at.offset_h);
  }
  ptx::griddepcontrol_launch_dependents();
  ptx::mbarrier_wait_parity(barrier, 0);
  for (uint32_t i = threadIdx.x * 16; i < bytes; i += 32 * 16) {
    uint32_t r[4];
    ptx::ld_shared_v4(r, box + i);
    ptx::st_global_v4(out + i, r);
  }
}

// in: boxes as stored in shared memory; places: 4 coordinates each. A block stores two boxes from the same address.
template <int kRank>
__global__ void __launch_bounds__(32)
    tma_store_kernel(const __grid_constant__ TensorMap map, const char* in, const char* places, uint32_t bytes) {
  DYNAMIC_SMEM(smem);
  const uint32_t source = ptx::smem_address(smem), lane = threadIdx.x;
  const bool elected = ptx::elect_one();
  for (uint32_t box = blockIdx.x * 2; box < blockIdx.x * 2 + 2; ++box) {
    if (elected) ptx::bulk_wait_group_read<0>();
    ptx::bar_sync_all();
    for (uint32_t i = lane * 16; i < bytes; i += 32 * 16) {
      uint32_t r[4];
      ptx::ld_global_v4(r, in + static_cast<uint64_t>(box) * bytes + i);
      ptx::st_shared_v4(source + i, r);
    }
    ptx::fence_proxy_async();
    ptx::bar_sync_all();
    if (elected) {
      uint32_t words[4];
      ptx::ld_global_v4(words, places + box * 16);
      int c[4];
      for (int i = 0; i < 4; ++i) c[i] = static_cast<int>(words[i]);
      if constexpr (kRank == 2)
        ptx::tma_store_2d(map, source, c[0], c[1]);
      else if constexpr (kRank == 3)
        ptx::tma_store_3d(map, source, c[0], c[1], c[2]);
      else
        ptx::tma_store_4d(map, source, c[0], c[1], c[2], c[3]);
      ptx::bulk_commit_group();
    }
  }
  if (elected) ptx::bulk_wait_group<0>();
}

Place take_place(Numbers& numbers) {
  Place p;
  for (int32_t& c : p.c) c = numbers.take32();
  p.offset_w = static_cast<uint16_t>(numbers.take());
  p.offset_h = static_cast<uint16_t>(numbers.take());
  return p;
}

// buffers: tensor, out; numbers: map, place, bytes
template <Load kLoad>
void load(const Call& c) {
  Numbers numbers(c);
  const TensorMap map = kLoad == Load::kIm2col ? take_im2col(numbers, c.in(0)) : take_tiled(numbers, c.in(0));
  const Place at = take_place(numbers);
  const int32_t bytes = numbers.take32();
  LAUNCH(tma_load_kernel<kLoad>, 1, 32, bytes + 16, nullptr, map, at, static_cast<uint32_t>(bytes),
         static_cast<char*>(c.out(1)));
}

// buffers: boxes, places, tensor; numbers: map, number of boxes (even), bytes per box
template <int kRank>
void store(const Call& c) {
  Numbers numbers(c);
  const TensorMap map = take_tiled(numbers, c.out(2));
  const int32_t boxes = numbers.take32(), bytes = numbers.take32();
  LAUNCH(tma_store_kernel<kRank>, boxes / 2, 32, bytes, nullptr, map, static_cast<const char*>(c.in(0)),
         static_cast<const char*>(c.in(1)), static_cast<uint32_t>(bytes));
}

const Primitive registered[] = {{"tma_load_2d", load<Load::kTile2d>},
                                {"tma_load_3d", load<Load::kTile3d>},
                                {"tma_load_4d", load<Load::kTile4d>},
                                {"tma_load_im2col_4d", load<Load::kIm2col>},
                                {"tma_store_2d", store<2>},
                                {"tma_store_3d", store<3>},
                                {"tma_store_4d", store<4>}};

}  // namespace
}  // namespace cuda_primitives
