// The roles of a block's warps. Tiles alternate between two consumers: one multiplies while the other runs its
// epilogue. docs/kernels/sm90_conv_rows.md has the order of things.
#pragma once
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/conv_rows_config.cuh"
#include "cuda/sm90/epilogue.cuh"
#include "cuda/sm90/product.cuh"
#include "cuda/tensor_map.h"
#include "cuda/tile/smem_descriptor.cuh"

namespace resnet_fused::cuda {

struct ConvRowsMaps {
  TensorMap x, filter;      // patches; taps
  TensorMap residual, out;  // tiles
};

// A block's tiles: every gridDim.x-th, or of one consumer every second of these. Tiles run along an image, so that
// blocks that are neighbours find the rows they share in L2.
template <typename Config>
struct ConvRowsWalk {
  int32_t across, down, tiles, step, tile;

  __device__ __forceinline__ ConvRowsWalk(const ConvShape& shape, int32_t first, int32_t step)
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

// One thread: the filter once, then three patches a tile, one for each of the filter's columns.
template <typename Config>
__device__ __forceinline__ void load_patches(const ConvFwdParams& p, const ConvRowsMaps& maps, uint32_t smem,
                                             const ConvRowsBarriers<Config>& barriers) {
  ptx::mbarrier_arrive_expect_tx(barriers.filter(), kConvRowsFilterBytes);
  for (int tap = 0; tap < kConvRowsTaps * kConvRowsTaps; ++tap)
    ptx::tma_load_2d(smem + tap * Config::kTapBytes, maps.filter, barriers.filter(), tap * kConvRowsChannels, 0);
  uint32_t t = 0;
  for (ConvRowsWalk<Config> walk(p.main.shape, blockIdx.x, gridDim.x); walk.more(); walk.next(), ++t) {
    const int32_t column = walk.column() - 1, row = walk.row() - 1, image = walk.image();
    for (int s = 0; s < kConvRowsPatches; ++s) {
      const uint32_t stage = Config::set_of(t) * kConvRowsPatches + s;
      ptx::mbarrier_wait_parity(barriers.empty(stage), Config::parity_of(t) ^ 1);
      ptx::mbarrier_arrive_expect_tx(barriers.full(stage), Config::kPatchBytes);
      ptx::tma_load_4d(smem + Config::kPatch + stage * Config::kPatchBytes, maps.x, barriers.full(stage), 0, column + s,
                       row, image);
    }
  }
}

// Brings the residual of a block's tile number t to where its output will be, which is free.
template <typename Config>
__device__ __forceinline__ void open_tile(const ConvFwdParams& p, const ConvRowsMaps& maps, uint32_t smem, uint32_t t,
                                          const ConvRowsWalk<Config>& walk, const ConvRowsBarriers<Config>& barriers) {
  const uint32_t open = barriers.open(t % 2);
  if (!p.residual) return ptx::mbarrier_arrive(open);
  ptx::mbarrier_arrive_expect_tx(open, Config::kOutBytes);
  ptx::tma_load_4d(smem + Config::kOut + Config::set_of(t) * Config::kOutBytes, maps.residual, open, 0, walk.column(),
                   walk.row(), walk.image());
}

// One thread: opens each tile as soon as the one that lay there before has been stored, and stores what the consumers
// hand over. Two sets are two tiles open at a time.
template <typename Config>
__device__ __forceinline__ void store_tiles(const ConvFwdParams& p, const ConvRowsMaps& maps, uint32_t smem,
                                            const ConvRowsBarriers<Config>& barriers) {
  constexpr uint32_t kAhead = Config::kSets - 1;
  ConvRowsWalk<Config> walk(p.main.shape, blockIdx.x, gridDim.x), ahead = walk;
  if constexpr (kAhead > 0) {
    open_tile<Config>(p, maps, smem, 0, ahead, barriers);
    ahead.next();
  }
  for (uint32_t t = 0; walk.more(); walk.next(), ahead.next(), ++t) {
    if (ahead.more()) open_tile<Config>(p, maps, smem, t + kAhead, ahead, barriers);
    ptx::mbarrier_wait_parity(barriers.staged(t % 2), t / 2 % 2);
    ptx::tma_store_4d(maps.out, smem + Config::kOut + Config::set_of(t) * Config::kOutBytes, 0, walk.column(),
                      walk.row(), walk.image());
    ptx::bulk_commit_group();
    ptx::bulk_wait_group_read<0>();  // the next residual may land where this tile lay
  }
  ptx::bulk_wait_group<0>();
}

// A consumer: sum = the product of the block's tile number t. Of column s of the filter, row r meets the patch r rows
// further down.
template <typename Config>
__device__ __forceinline__ void multiply_tile(typename Config::Sum& sum, uint32_t smem, uint32_t t,
                                              const ConvRowsBarriers<Config>& barriers) {
  const uint32_t first = Config::set_of(t) * kConvRowsPatches;
  const uint64_t filter = smem_descriptor<Swizzle::k128>(smem);
  const uint64_t patches = smem_descriptor<Swizzle::k128>(smem + Config::kPatch + first * Config::kPatchBytes);
  constexpr auto move = Config::kSets == 1 ? moved_uniform : moved;
  const bool speaks = threadIdx.x % 32 == 0;  // each warp for itself: a wait covers its own products only
#pragma unroll
  for (uint32_t s = 0; s < kConvRowsPatches; ++s) {
    // Of one set, parity tells a patch of this tile from one of two tiles ago only because the turn came after the
    // patch in between had landed.
    ptx::mbarrier_wait_parity(barriers.full(first + s), Config::parity_of(t));
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t r = 0; r < kConvRowsTaps; ++r)
#pragma unroll
      for (uint32_t k = 0; k < kRowBytes; k += 32)
        wgmma<Config>(sum, moved_uniform(filter, (r * kConvRowsTaps + s) * Config::kTapBytes + k),
                      move(patches, s * Config::kPatchBytes + r * Config::kPatchRowBytes + k), s + r + k > 0);
    ptx::wgmma_commit_group();
    if (s == 0) continue;
    ptx::wgmma_wait_group<1>();  // the patch before this one has been multiplied
    if (speaks) ptx::mbarrier_arrive(barriers.empty(first + s - 1));
  }
  if (speaks) ptx::mbarrier_arrive(barriers.turn((t + 1) % 2));  // the other's products queue behind these
  ptx::wgmma_wait_group<0>();
  if (speaks) ptx::mbarrier_arrive(barriers.empty(first + kConvRowsPatches - 1));
}

template <typename Config>
__device__ __forceinline__ void consume_tiles(const ConvFwdParams& p, uint32_t smem, uint32_t consumer,
                                              const ConvRowsBarriers<Config>& barriers) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const RowAffine<Config::kDtype> bn(p.main.bn, warp * 16 + lane / 4, kConvRowsChannels);
  const uint32_t out = smem + Config::kOut + Config::set_of(consumer) * Config::kOutBytes;
  typename Config::Sum sum;
  uint32_t t = consumer;  // of the block's tiles
  ptx::mbarrier_wait_parity(barriers.filter(), 0);
  for (ConvRowsWalk<Config> walk(p.main.shape, blockIdx.x + consumer * gridDim.x, kConvRowsConsumers * gridDim.x);
       walk.more(); walk.next(), t += kConvRowsConsumers) {
    const uint32_t parity = t / 2 % 2;
    ptx::mbarrier_wait_parity(barriers.turn(consumer), consumer == 0 ? parity ^ 1 : parity);  // 0 begins unasked
    multiply_tile<Config>(sum, smem, t, barriers);
    ptx::mbarrier_wait_parity(barriers.open(consumer), parity);
    finish<Config>(sum, nullptr, bn, bn, p.residual != nullptr, p.relu, out);
    ptx::fence_proxy_async();  // TMA reads by another way than stmatrix wrote
    ptx::bar_warp_sync(~0u);
    if (lane == 0) ptx::mbarrier_arrive(barriers.staged(consumer));
  }
}

}  // namespace resnet_fused::cuda
