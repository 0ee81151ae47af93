// What each warp of a block does. All walk over the same tiles and steps, in one order; barriers in shared memory are
// all they have in common.
#pragma once
#include "cuda/ptx/mbarrier.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"
#include "cuda/ptx/tma.cuh"
#include "cuda/sm90/conv_sm90_config.cuh"
#include "cuda/sm90/epilogue.cuh"
#include "cuda/sm90/product.cuh"
#include "cuda/tensor_map.h"
#include "cuda/tile/channel_table.cuh"
#include "cuda/tile/im2col.cuh"
#include "cuda/tile/smem_descriptor.cuh"

namespace resnet_fused::cuda {

struct ConvSm90Maps {
  TensorMap x, weight;                        // im2col; rows of the depth
  TensorMap projection_x, projection_weight;  // likewise, where there is a projection
  TensorMap residual, out;                    // pixels x channels
};

// The tiles of a block: neighbouring blocks have the same pixels and find them in L2.
template <typename Config>
struct TileWalk {
  int32_t tiles_k, tiles, tile;

  __device__ __forceinline__ explicit TileWalk(const ConvShape& shape)
      : tiles_k((shape.k + Config::kChannels - 1) / Config::kChannels),
        tiles((shape.n * shape.p * shape.q + Config::kPixels - 1) / Config::kPixels * tiles_k),
        tile(blockIdx.x) {}

  __device__ __forceinline__ bool more() const { return tile < tiles; }
  __device__ __forceinline__ void next() { tile += gridDim.x; }
  __device__ __forceinline__ int32_t pixel() const { return tile / tiles_k * Config::kPixels; }
  __device__ __forceinline__ int32_t channel() const { return tile % tiles_k * Config::kChannels; }
};

__device__ __forceinline__ int32_t conv_sm90_steps(const ConvShape& shape) {
  return shape.r * shape.s * (shape.c / kConvSm90Depth);
}

// One thread: fills the ring.
template <typename Config>
__device__ __forceinline__ void load_operands(const ConvShape& shape, const TensorMap& x, const TensorMap& weight,
                                              int32_t pixel, int32_t channel, uint32_t ring,
                                              const ConvSm90Barriers<Config>& barriers,
                                              RingCursor<Config::kStages>& at) {
  const int32_t q = pixel % shape.q, p = pixel / shape.q % shape.p, n = pixel / shape.q / shape.p;
  const int32_t h = p * shape.stride_h - shape.pad_h, w = q * shape.stride_w - shape.pad_w;
  int32_t depth = 0;
  for (int32_t r = 0; r < shape.r; ++r)
    for (int32_t s = 0; s < shape.s; ++s)
      for (int32_t c = 0; c < shape.c; c += kConvSm90Depth, depth += kConvSm90Depth) {
        const uint32_t stage = ring + at.stage * Config::kStageBytes;
        ptx::mbarrier_wait_parity(barriers.empty(at.stage), at.parity ^ 1);
        ptx::mbarrier_arrive_expect_tx(barriers.full(at.stage), Config::kStageBytes);
        ptx::tma_load_im2col_4d(stage, x, barriers.full(at.stage), c, w, h, n, static_cast<uint16_t>(s * shape.dil_w),
                                static_cast<uint16_t>(r * shape.dil_h));
        ptx::tma_load_2d(stage + Config::kPixelBytes, weight, barriers.full(at.stage), depth, channel);
        at.next();
      }
}

template <typename Config>
__device__ __forceinline__ void produce(const ConvFwdParams& p, const ConvSm90Maps& maps, uint32_t smem,
                                        const ConvSm90Barriers<Config>& barriers) {
  RingCursor<Config::kStages> at;
  for (TileWalk<Config> walk(p.main.shape); walk.more(); walk.next()) {
    if constexpr (Config::kProjects)
      load_operands<Config>(p.projection.shape, maps.projection_x, maps.projection_weight, walk.pixel(), walk.channel(),
                            smem, barriers, at);
    load_operands<Config>(p.main.shape, maps.x, maps.weight, walk.pixel(), walk.channel(), smem, barriers, at);
  }
}

// One thread: brings each tile's residual while the tile is multiplied, and stores what the consumers hand over.
template <typename Config>
__device__ __forceinline__ void store(const ConvFwdParams& p, const ConvSm90Maps& maps, uint32_t smem,
                                      const ConvSm90Barriers<Config>& barriers) {
  uint32_t parity = 0;
  for (TileWalk<Config> walk(p.main.shape); walk.more(); walk.next(), parity ^= 1) {
    for (int i = 0; i < kConvSm90Consumers; ++i) {
      const int32_t pixel = walk.pixel() + (Config::kSharesPixels ? 0 : i * Config::kColumns);
      const int32_t channel = walk.channel() + (Config::kSharesPixels ? i * 64 : 0);
      const uint32_t out = smem + Config::kOut + i * Config::kOutBytes;
      if (!Config::kProjects && p.residual) {
        ptx::mbarrier_arrive_expect_tx(barriers.open(i), Config::kOutBytes);
        ptx::tma_load_2d(out, maps.residual, barriers.open(i), channel, pixel);
      } else {
        ptx::mbarrier_arrive(barriers.open(i));
      }
    }
    for (int i = 0; i < kConvSm90Consumers; ++i) {
      const int32_t pixel = walk.pixel() + (Config::kSharesPixels ? 0 : i * Config::kColumns);
      const int32_t channel = walk.channel() + (Config::kSharesPixels ? i * 64 : 0);
      ptx::mbarrier_wait_parity(barriers.staged(i), parity);
      ptx::tma_store_2d(maps.out, smem + Config::kOut + i * Config::kOutBytes, channel, pixel);
      ptx::bulk_commit_group();
    }
    ptx::bulk_wait_group_read<0>();  // the next residual may land where these lay
  }
  ptx::bulk_wait_group<0>();
}

// A warpgroup of its own: relu(pre(.)) of each stage in place, before the consumers may read it. TMA filled the padding
// with zeros, and zeros it stays.
template <typename Config>
__device__ __forceinline__ void prepare_steps(const ConvShape& shape, const ChannelTable& table, int32_t pixel,
                                              uint32_t ring, const ConvSm90Barriers<Config>& barriers,
                                              RingCursor<Config::kStages>& at) {
  constexpr int kPer = kChunkBytes / kSizeOf<Config::kDtype>, kRows = 128 / kRowChunks;
  using Data = Chunk<Config::kDtype, kPer>;
  const int32_t thread = threadIdx.x % 128, column = thread % kRowChunks, row = thread / kRowChunks;
  const PixelRows<Config::kPixels / kRows> pixels(shape, pixel + row, kRows);
  TapCursor tap(shape, kPer, column);
  for (int32_t step = conv_sm90_steps(shape); step > 0; --step) {
    ptx::mbarrier_wait_parity(barriers.full(at.stage), at.parity);
    const ChannelRegisters<kPer> bn(table, tap.chunk * kPer);
#pragma unroll
    for (int i = 0; i < Config::kPixels / kRows; ++i) {
      if (!pixels.valid(i, tap)) continue;
      const uint32_t address = ring + at.stage * Config::kStageBytes + swizzled(row + i * kRows, column);
      Data x;
      ptx::ld_shared_v4(x.words, address);
      float v[kPer];
#pragma unroll
      for (int e = 0; e < kPer; ++e) v[e] = relu_of(bn.apply(x.get(e), e));
      Data::pack(x.words, v);
      ptx::st_shared_v4(address, x.words);
    }
    ptx::fence_proxy_async();  // wgmma reads by another way than these stores
    ptx::mbarrier_arrive(barriers.ready(at.stage));
    tap.advance(shape, kRowChunks);
    at.next();
  }
}

template <typename Config>
__device__ __forceinline__ void prepare(const ConvFwdParams& p, const ChannelTable& table, uint32_t ring,
                                        const ConvSm90Barriers<Config>& barriers) {
  RingCursor<Config::kStages> at;
  for (TileWalk<Config> walk(p.main.shape); walk.more(); walk.next()) {
    if constexpr (Config::kMode == ConvFwdMode::kPrologue) {
      prepare_steps<Config>(p.main.shape, table, walk.pixel(), ring, barriers, at);
    } else {
      prepare_steps<Config>(p.projection.shape, table, walk.pixel(), ring, barriers, at);
      // These need nothing but to be passed on, so that both barriers of a stage keep the same phase.
      for (int32_t step = conv_sm90_steps(p.main.shape); step > 0; --step) {
        ptx::mbarrier_wait_parity(barriers.full(at.stage), at.parity);
        ptx::mbarrier_arrive(barriers.ready(at.stage));
        at.next();
      }
    }
  }
}

// A consumer: sum = this warpgroup's part of the product, over the steps of one convolution.
template <typename Config>
__device__ __forceinline__ void multiply(typename Config::Sum& sum, int32_t steps, uint32_t ring, uint32_t consumer,
                                         const ConvSm90Barriers<Config>& barriers, RingCursor<Config::kStages>& at) {
  const uint32_t weights = Config::kPixelBytes + (Config::kSharesPixels ? consumer * 64 * kRowBytes : 0);
  const uint32_t pixels = Config::kSharesPixels ? 0 : consumer * Config::kColumns * kRowBytes;
  const bool speaks = threadIdx.x % 32 == 0;  // each warp for itself: a wait covers its own products only
  int last = 0;
  for (int32_t step = 0; step < steps; ++step) {
    const uint32_t stage = ring + at.stage * Config::kStageBytes;
    ptx::mbarrier_wait_parity(Config::kPrepares ? barriers.ready(at.stage) : barriers.full(at.stage), at.parity);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < kRowBytes; k += 32)
      wgmma<Config>(sum, smem_descriptor<Swizzle::k128>(stage + weights + k),
                    smem_descriptor<Swizzle::k128>(stage + pixels + k), step > 0 || k > 0);
    ptx::wgmma_commit_group();
    // The step before this one has been multiplied, and its stage is free.
    ptx::wgmma_wait_group<1>();
    if (step > 0 && speaks) ptx::mbarrier_arrive(barriers.empty(last));
    last = at.stage;
    at.next();
  }
  ptx::wgmma_wait_group<0>();
  if (speaks) ptx::mbarrier_arrive(barriers.empty(last));
}

template <typename Config>
__device__ __forceinline__ void consume(const ConvFwdParams& p, uint32_t smem, uint32_t consumer,
                                        const ConvSm90Barriers<Config>& barriers) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const uint32_t out = smem + Config::kOut + consumer * Config::kOutBytes;
  RingCursor<Config::kStages> at;
  uint32_t parity = 0;
  typename Config::Sum sum, projected;
  for (TileWalk<Config> walk(p.main.shape); walk.more(); walk.next(), parity ^= 1) {
    const int32_t channel = walk.channel() + (Config::kSharesPixels ? consumer * 64 : 0) + warp * 16 + lane / 4;
    const RowAffine<Config::kDtype> bn(p.main.bn, channel, p.main.shape.k);
    const RowAffine<Config::kDtype> projection_bn =
        Config::kProjects ? RowAffine<Config::kDtype>(p.projection.bn, channel, p.main.shape.k) : bn;
    if constexpr (Config::kProjects)
      multiply<Config>(projected, conv_sm90_steps(p.projection.shape), smem, consumer, barriers, at);
    multiply<Config>(sum, conv_sm90_steps(p.main.shape), smem, consumer, barriers, at);
    ptx::mbarrier_wait_parity(barriers.open(consumer), parity);
    finish<Config>(sum, &projected, bn, projection_bn, p.residual != nullptr, p.relu, out);
    ptx::fence_proxy_async();  // TMA reads by another way than stmatrix wrote
    ptx::bar_warp_sync(~0u);
    if (lane == 0) ptx::mbarrier_arrive(barriers.staged(consumer));
  }
}

}  // namespace resnet_fused::cuda
