// What each warp of a block does. A block's tiles go to its two consumers in turn: one multiplies while the other
// finishes. docs/kernels/sm90_conv_rows.md has the order of things.
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
  TensorMap x, filter;      // patches; all taps at once
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

// One thread: the filter once, then a patch for each of its columns. Stage s always holds column s of a tile, so that a
// stage's phases are the block's tiles.
template <typename Config>
__device__ __forceinline__ void load_patches(const ConvFwdParams& p, const ConvRowsMaps& maps, uint32_t smem,
                                             const ConvRowsBarriers& barriers) {
  ptx::mbarrier_arrive_expect_tx(barriers.filter(), kConvRowsFilterBytes);
  ptx::tma_load_3d(smem, maps.filter, barriers.filter(), 0, 0, 0);
  uint32_t parity = 0;
  for (ConvRowsWalk<Config> walk(p.main.shape, blockIdx.x, gridDim.x); walk.more(); walk.next(), parity ^= 1) {
    const int32_t column = walk.column() - 1, row = walk.row() - 1, image = walk.image();
    for (int s = 0; s < kConvRowsStages; ++s) {
      ptx::mbarrier_wait_parity(barriers.empty(s), parity ^ 1);
      ptx::mbarrier_arrive_expect_tx(barriers.full(s), Config::kPatchBytes);
      ptx::tma_load_4d(smem + Config::kPatch + s * Config::kPatchBytes, maps.x, barriers.full(s), 0, column + s, row,
                       image);
    }
  }
}

// One thread: brings each tile's residual to where its output will be, as soon as the tile before has been stored from
// there, and stores what the consumers hand over.
template <typename Config>
__device__ __forceinline__ void store_tiles(const ConvFwdParams& p, const ConvRowsMaps& maps, uint32_t smem,
                                            const ConvRowsBarriers& barriers) {
  const uint32_t out = smem + Config::kOut;
  uint32_t parity = 0;  // of the block's tile, and so the number of its consumer
  for (ConvRowsWalk<Config> walk(p.main.shape, blockIdx.x, gridDim.x); walk.more(); walk.next(), parity ^= 1) {
    const int32_t column = walk.column(), row = walk.row(), image = walk.image();
    if (p.residual) {
      ptx::mbarrier_arrive_expect_tx(barriers.open(parity), Config::kOutBytes);
      ptx::tma_load_4d(out, maps.residual, barriers.open(parity), 0, column, row, image);
    } else {
      ptx::mbarrier_arrive(barriers.open(parity));
    }
    ptx::mbarrier_wait_parity(barriers.staged(), parity);
    ptx::tma_store_4d(maps.out, out, 0, column, row, image);
    ptx::bulk_commit_group();
    ptx::bulk_wait_group_read<0>();  // the next residual may land where this tile lay
  }
  ptx::bulk_wait_group<0>();
}

// A consumer: sum = the product of one tile. Of column s of the filter, row r meets the patch r rows further down.
template <typename Config>
__device__ __forceinline__ void multiply_tile(typename Config::Sum& sum, uint32_t smem, uint32_t consumer,
                                              const ConvRowsBarriers& barriers) {
  const uint64_t filter = smem_descriptor<Swizzle::k128>(smem);
  const uint64_t patches = smem_descriptor<Swizzle::k128>(smem + Config::kPatch);
  const bool speaks = threadIdx.x % 32 == 0;  // each warp for itself: a wait covers its own products only
#pragma unroll
  for (uint32_t s = 0; s < kConvRowsStages; ++s) {
    // Consumer 0 has the block's even tiles, and consumer 1 the odd ones: so are the stages' phases. The parity tells
    // a patch of this tile from one of two tiles ago because the turn came after the patch in between had landed.
    ptx::mbarrier_wait_parity(barriers.full(s), consumer);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t r = 0; r < kConvRowsTaps; ++r)
#pragma unroll
      for (uint32_t k = 0; k < kRowBytes; k += 32)
        wgmma<Config>(sum, moved(filter, (r * kConvRowsTaps + s) * Config::kTapBytes + k),
                      moved(patches, s * Config::kPatchBytes + r * Config::kPatchRowBytes + k), s + r + k > 0);
    ptx::wgmma_commit_group();
    if (s == 0) continue;
    ptx::wgmma_wait_group<1>();  // the stage before this one has been multiplied
    if (speaks) ptx::mbarrier_arrive(barriers.empty(s - 1));
  }
  if (speaks) ptx::mbarrier_arrive(barriers.turn(1 - consumer));  // its products queue behind these
  ptx::wgmma_wait_group<0>();
  if (speaks) ptx::mbarrier_arrive(barriers.empty(kConvRowsStages - 1));
}

template <typename Config>
__device__ __forceinline__ void consume_tiles(const ConvFwdParams& p, uint32_t smem, uint32_t consumer,
                                              const ConvRowsBarriers& barriers) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const RowAffine<Config::kDtype> bn(p.main.bn, warp * 16 + lane / 4, kConvRowsChannels);
  typename Config::Sum sum;
  uint32_t parity = 0;  // of this consumer's tile
  ptx::mbarrier_wait_parity(barriers.filter(), 0);
  for (ConvRowsWalk<Config> walk(p.main.shape, blockIdx.x + consumer * gridDim.x, kConvRowsConsumers * gridDim.x);
       walk.more(); walk.next(), parity ^= 1) {
    ptx::mbarrier_wait_parity(barriers.turn(consumer), consumer == 0 ? parity ^ 1 : parity);  // 0 begins unasked
    multiply_tile<Config>(sum, smem, consumer, barriers);
    ptx::mbarrier_wait_parity(barriers.open(consumer), parity);
    finish<Config>(sum, nullptr, bn, bn, p.residual != nullptr, p.relu, smem + Config::kOut);
    ptx::fence_proxy_async();  // TMA reads by another way than stmatrix wrote
    ptx::bar_warp_sync(~0u);
    if (lane == 0) ptx::mbarrier_arrive(barriers.staged());
  }
}

}  // namespace resnet_fused::cuda
