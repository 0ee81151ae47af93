// Warp roles of conv_rows. Tiles alternate between two consumer warp groups: one runs its main loop while the other
// runs its epilogue. docs/kernels/sm90_conv_rows.md explains the order.
#pragma once
#include "cuda/device/ptx/mbarrier.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/device/tile/smem_descriptor.cuh"
#include "cuda/device/types.h"
#include "cuda/kernels/sm90/conv_rows_config.cuh"
#include "cuda/kernels/sm90/epilogue.cuh"
#include "cuda/kernels/sm90/product.cuh"

namespace resnet_fused::cuda {

struct ConvRowsMaps {
  TensorMap x, filter;      // patches; taps
  TensorMap residual, out;  // tiles
};

// A CTA's tiles: every gridDim.x-th tile; a consumer takes every second of them. Tiles run along an image, so that
// neighbouring CTAs find shared input rows in L2.
template <typename Config>
struct ConvRowsScheduler {
  int32_t across, down, tiles, step, tile;

  __device__ __forceinline__ ConvRowsScheduler(const ConvShape& shape, int32_t first, int32_t step)
      : across((shape.q + Config::kTileColumns - 1) / Config::kTileColumns),
        down((shape.p + Config::kRows - 1) / Config::kRows),
        tiles(shape.n * down * across),
        step(step),
        tile(first) {}

  __device__ __forceinline__ bool more() const { return tile < tiles; }
  __device__ __forceinline__ void next() { tile += step; }
  __device__ __forceinline__ int32_t column() const { return tile % across * Config::kTileColumns; }
  __device__ __forceinline__ int32_t row() const { return tile / across % down * Config::kRows; }
  __device__ __forceinline__ int32_t image() const { return tile / across / down; }
};

// One thread: loads the filter once, then three patches per tile, one per filter column.
template <typename Config>
__device__ __forceinline__ void load_patches(const ConvFwdParams& p, const ConvRowsMaps& maps, uint32_t smem,
                                             const ConvRowsBarriers<Config>& barriers) {
  ptx::mbarrier_arrive_expect_tx(barriers.filter(), kConvRowsFilterBytes);
  for (int tap = 0; tap < kConvRowsTaps * kConvRowsTaps; ++tap)
    ptx::tma_load_2d(smem + tap * Config::kTapBytes, maps.filter, barriers.filter(), tap * kConvRowsChannels, 0);
  uint32_t t = 0;
  for (ConvRowsScheduler<Config> scheduler(p.main.shape, blockIdx.x, gridDim.x); scheduler.more();
       scheduler.next(), ++t) {
    const int32_t column = scheduler.column() - 1, row = scheduler.row() - 1, image = scheduler.image();
    for (int s = 0; s < kConvRowsPatches; ++s) {
      const uint32_t stage = Config::set_of(t) * kConvRowsPatches + s;
      ptx::mbarrier_wait_parity(barriers.empty(stage), Config::parity_of(t) ^ 1);
      ptx::mbarrier_arrive_expect_tx(barriers.full(stage), Config::kPatchBytes);
      ptx::tma_load_4d(smem + Config::kPatch + stage * Config::kPatchBytes, maps.x, barriers.full(stage), 0, column + s,
                       row, image);
    }
  }
}

// Opens the output tile of the CTA's tile number t, whose memory must be free: at once or, with a residual, when it has
// landed there.
template <typename Config>
__device__ __forceinline__ void open_tile(const ConvFwdParams& p, const ConvRowsMaps& maps, uint32_t smem, uint32_t t,
                                          const ConvRowsScheduler<Config>& scheduler,
                                          const ConvRowsBarriers<Config>& barriers) {
  const uint32_t open = barriers.open(t % 2);
  if (!p.residual) return ptx::mbarrier_arrive(open);
  ptx::mbarrier_arrive_expect_tx(open, Config::kOutBytes);
  ptx::tma_load_4d(smem + Config::kOut + Config::set_of(t) * Config::kOutBytes, maps.residual, open, 0,
                   scheduler.column(), scheduler.row(), scheduler.image());
}

// One thread: opens each output tile as soon as the previous one in the same memory has been stored, and stores the
// tiles that the consumers have staged. With two sets, two tiles are open at a time.
template <typename Config>
__device__ __forceinline__ void store_tiles(const ConvFwdParams& p, const ConvRowsMaps& maps, uint32_t smem,
                                            const ConvRowsBarriers<Config>& barriers) {
  constexpr uint32_t kAhead = Config::kSets - 1;
  ConvRowsScheduler<Config> scheduler(p.main.shape, blockIdx.x, gridDim.x), ahead = scheduler;
  if constexpr (kAhead > 0) {
    open_tile<Config>(p, maps, smem, 0, ahead, barriers);
    ahead.next();
  }
  for (uint32_t t = 0; scheduler.more(); scheduler.next(), ahead.next(), ++t) {
    if (ahead.more()) open_tile<Config>(p, maps, smem, t + kAhead, ahead, barriers);
    ptx::mbarrier_wait_parity(barriers.staged(t % 2), t / 2 % 2);
    ptx::tma_store_4d(maps.out, smem + Config::kOut + Config::set_of(t) * Config::kOutBytes, 0, scheduler.column(),
                      scheduler.row(), scheduler.image());
    ptx::bulk_commit_group();
    ptx::bulk_wait_group_read<0>();  // the next residual may overwrite this tile
  }
  ptx::bulk_wait_group<0>();
}

// A consumer: sum = the product of the CTA's tile number t. Tap (r, s) of the filter reads patch s from its row r on.
template <typename Config>
__device__ __forceinline__ void multiply_tile(typename Config::Sum& sum, uint32_t smem, uint32_t t,
                                              const ConvRowsBarriers<Config>& barriers) {
  const uint32_t first = Config::set_of(t) * kConvRowsPatches;
  const uint64_t filter = smem_descriptor<Swizzle::k128>(smem);
  const uint64_t patches = smem_descriptor<Swizzle::k128>(smem + Config::kPatch + first * Config::kPatchBytes);
  constexpr auto move = Config::kSets == 1 ? moved_uniform : moved;
  const bool elected = threadIdx.x % 32 == 0;  // one arrival per warp: a wait covers only the warp's own wgmmas
#pragma unroll
  for (uint32_t s = 0; s < kConvRowsPatches; ++s) {
    // With one set, parity alone cannot tell this tile's patch from that of two tiles ago. It can here, because the
    // other consumer passed the order on only after the patch in between had landed.
    ptx::mbarrier_wait_parity(barriers.full(first + s), Config::parity_of(t));
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t r = 0; r < kConvRowsTaps; ++r)
#pragma unroll
      for (uint32_t k = 0; k < kRowBytes; k += 32)
        wgmma<Config::kDtype, Config::kColumns>(
            sum, moved_uniform(filter, (r * kConvRowsTaps + s) * Config::kTapBytes + k),
            move(patches, s * Config::kPatchBytes + r * Config::kPatchRowBytes + k), s + r + k > 0);
    ptx::wgmma_commit_group();
    if (s == 0) continue;
    ptx::wgmma_wait_group<1>();  // the previous patch has been multiplied
    if (elected) ptx::mbarrier_arrive(barriers.empty(first + s - 1));
  }
  if (elected) ptx::mbarrier_arrive(barriers.order((t + 1) % 2));  // the other consumer's wgmmas queue behind these
  ptx::wgmma_wait_group<0>();
  if (elected) ptx::mbarrier_arrive(barriers.empty(first + kConvRowsPatches - 1));
}

template <typename Config>
__device__ __forceinline__ void consume_tiles(const ConvFwdParams& p, uint32_t smem, uint32_t consumer,
                                              const ConvRowsBarriers<Config>& barriers) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const RowAffine<Config::kDtype> bn(p.main.bn, warp * 16 + lane / 4, kConvRowsChannels);
  const uint32_t out = smem + Config::kOut + Config::set_of(consumer) * Config::kOutBytes;
  typename Config::Sum sum;
  uint32_t t = consumer;  // the CTA's tile number
  ptx::mbarrier_wait_parity(barriers.filter(), 0);
  for (ConvRowsScheduler<Config> scheduler(p.main.shape, blockIdx.x + consumer * gridDim.x,
                                           kConvRowsConsumers * gridDim.x);
       scheduler.more(); scheduler.next(), t += kConvRowsConsumers) {
    const uint32_t parity = t / 2 % 2;
    ptx::mbarrier_wait_parity(barriers.order(consumer), consumer == 0 ? parity ^ 1 : parity);  // 0 goes first
    multiply_tile<Config>(sum, smem, t, barriers);
    ptx::mbarrier_wait_parity(barriers.open(consumer), parity);
    finish<Config>(sum, nullptr, bn, bn, p.residual != nullptr, p.relu, out);
    ptx::fence_proxy_async();  // TMA reads through the async proxy
    ptx::bar_warp_sync(~0u);
    if (lane == 0) ptx::mbarrier_arrive(barriers.staged(consumer));
  }
}

}  // namespace resnet_fused::cuda
