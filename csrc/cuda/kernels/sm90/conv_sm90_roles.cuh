// Warp roles of conv_sm90. All roles visit the same tiles and steps in the same order, and synchronise only through
// mbarriers.
#pragma once
#include <type_traits>

#include "cuda/device/ptx/mbarrier.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/device/tile/channel_table.cuh"
#include "cuda/device/tile/im2col.cuh"
#include "cuda/device/tile/smem_descriptor.cuh"
#include "cuda/device/types.h"
#include "cuda/kernels/sm90/conv_sm90_config.cuh"
#include "cuda/kernels/sm90/conv_sm90_moments.cuh"
#include "cuda/kernels/sm90/conv_sm90_work.cuh"
#include "cuda/kernels/sm90/epilogue.cuh"
#include "cuda/kernels/sm90/product.cuh"

namespace resnet_fused::cuda {

struct ConvSm90Maps {
  TensorMap x, weight;                        // im2col; output channels x depth
  TensorMap projection_x, projection_weight;  // likewise, with a projection
  TensorMap residual, out;                    // pixels x channels
};

// One thread: fills the pipeline.
template <typename Config>
__device__ __forceinline__ void load_operands(const ConvShape& shape, const TensorMap& x, const TensorMap& weight,
                                              int32_t pixel, int32_t channel, StepRange steps, uint32_t ring,
                                              const ConvSm90Barriers<Config>& barriers,
                                              RingCursor<Config::kStages>& at) {
  const int32_t q = pixel % shape.q, p = pixel / shape.q % shape.p, n = pixel / shape.q / shape.p;
  const int32_t h = p * shape.stride_h - shape.pad_h, w = q * shape.stride_w - shape.pad_w;
  const int32_t a_tap = shape.c / kConvSm90Depth, tap = steps.first / a_tap;
  int32_t r = tap / shape.s, s = tap % shape.s, c = steps.first % a_tap * kConvSm90Depth;
  int32_t depth = steps.first * kConvSm90Depth;
  for (int32_t i = 0; i < steps.count; ++i, depth += kConvSm90Depth) {
    const uint32_t stage = ring + at.stage * Config::kStageBytes;
    ptx::mbarrier_wait_parity(barriers.empty(at.stage), at.parity ^ 1);
    ptx::mbarrier_arrive_expect_tx(barriers.full(at.stage), Config::kStageBytes);
    ptx::tma_load_im2col_4d(stage, x, barriers.full(at.stage), c, w, h, n, static_cast<uint16_t>(s * shape.dil_w),
                            static_cast<uint16_t>(r * shape.dil_h));
    ptx::tma_load_2d(stage + Config::kPixelBytes, weight, barriers.full(at.stage), depth, channel);
    at.next();
    c += kConvSm90Depth;
    if (c < shape.c) continue;
    c = 0;
    if (++s == shape.s) s = 0, ++r;
  }
}

template <typename Config>
__device__ __forceinline__ void produce(const ConvFwdParams& p, const ConvSm90Maps& maps, uint32_t smem,
                                        const ConvSm90Barriers<Config>& barriers) {
  RingCursor<Config::kStages> at;
  for (TileScheduler<Config> scheduler(p); scheduler.more(); scheduler.next()) {
    if constexpr (Config::kProjects)
      load_operands<Config>(p.projection.shape, maps.projection_x, maps.projection_weight, scheduler.pixel(),
                            scheduler.channel(), scheduler.projection, smem, barriers, at);
    load_operands<Config>(p.main.shape, maps.x, maps.weight, scheduler.pixel(), scheduler.channel(), scheduler.main,
                          smem, barriers, at);
  }
}

// A consumer's part of a data-parallel tile, staged in shared memory.
template <typename Config>
struct OutputPart {
  int32_t pixel, channel;
  uint32_t memory, open, staged;

  __device__ __forceinline__ OutputPart(const TileScheduler<Config>& scheduler, int consumer, uint32_t smem,
                                        const ConvSm90Barriers<Config>& barriers)
      : pixel(scheduler.pixel() + consumer * Config::kPixelStride),
        channel(scheduler.channel() + consumer * Config::kChannelStride),
        memory(smem + Config::kOut + consumer * Config::kOutBytes),
        open(barriers.open(consumer)),
        staged(barriers.staged(consumer)) {}

  // Opens the part for the consumer: at once or, with a residual, when it has landed there.
  __device__ __forceinline__ void begin(const ConvFwdParams& p, const TensorMap& residual) const {
    if (!Config::kProjects && p.residual) {
      ptx::mbarrier_arrive_expect_tx(open, Config::kOutBytes);
      ptx::tma_load_2d(memory, residual, open, channel, pixel);
    } else {
      ptx::mbarrier_arrive(open);
    }
  }

  __device__ __forceinline__ void store(const TensorMap& out, uint32_t parity) const {
    ptx::mbarrier_wait_parity(staged, parity);
    ptx::tma_store_2d(out, memory, channel, pixel);
    ptx::bulk_commit_group();
  }
};

// One thread: loads each tile's residual during its main loop, and stores the tiles that the consumers have staged.
template <typename Config>
__device__ __forceinline__ void store(const ConvFwdParams& p, const ConvSm90Maps& maps, uint32_t smem,
                                      const ConvSm90Barriers<Config>& barriers) {
  uint32_t parity = 0;
  for (TileScheduler<Config> scheduler(p); scheduler.finishes(); scheduler.next(), parity ^= 1) {
    for (int i = 0; i < kConvSm90Consumers; ++i)
      OutputPart<Config>(scheduler, i, smem, barriers).begin(p, maps.residual);
    for (int i = 0; i < kConvSm90Consumers; ++i)
      OutputPart<Config>(scheduler, i, smem, barriers).store(maps.out, parity);
    ptx::bulk_wait_group_read<0>();  // the next residual may overwrite these parts
  }
  ptx::bulk_wait_group<0>();
}

// The same for ping-pong consumers: loads the next tile's residual before it stores this tile.
template <typename Config>
__device__ __forceinline__ void store_pingpong(const ConvFwdParams& p, const ConvSm90Maps& maps, uint32_t smem,
                                               const ConvSm90Barriers<Config>& barriers) {
  TileScheduler<Config> ahead(p);
  if (ahead.finishes()) OutputPart<Config>(ahead, 0, smem, barriers).begin(p, maps.residual);
  uint32_t piece = 0;
  for (TileScheduler<Config> scheduler(p); scheduler.finishes(); scheduler.next(), ++piece) {
    ahead.next();
    ptx::bulk_wait_group_read<0>();  // the output before this one has been read: its memory is the next one's
    if (ahead.finishes()) OutputPart<Config>(ahead, (piece + 1) % 2, smem, barriers).begin(p, maps.residual);
    OutputPart<Config>(scheduler, piece % 2, smem, barriers).store(maps.out, piece / 2 & 1);
  }
  ptx::bulk_wait_group<0>();
}

// A warp group of its own: applies relu(pre(.)) to each stage in place, before the consumers read it. Padding, which
// TMA zero-filled, stays zero.
template <typename Config>
__device__ __forceinline__ void prepare_steps(const ConvShape& shape, const ChannelTable& table, int32_t pixel,
                                              StepRange steps, uint32_t ring, const ConvSm90Barriers<Config>& barriers,
                                              RingCursor<Config::kStages>& at) {
  constexpr int kPer = kChunkBytes / kSizeOf<Config::kDtype>, kRows = 128 / kRowChunks;
  using Data = Chunk<Config::kDtype, kPer>;
  const int32_t thread = threadIdx.x % 128, column = thread % kRowChunks, row = thread / kRowChunks;
  const PixelRows<Config::kPixels / kRows> pixels(shape, pixel + row, kRows);
  TapCursor tap(shape, kPer, steps.first * kRowChunks + column);
  for (int32_t left = steps.count; left > 0; --left) {
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
      for (int e = 0; e < kPer; ++e) v[e] = bn.apply(x.get(e), e);
      Data::pack_relu(x.words, v);
      ptx::st_shared_v4(address, x.words);
    }
    ptx::fence_proxy_async();  // wgmma reads through the async proxy
    ptx::mbarrier_arrive(barriers.ready(at.stage));
    tap.advance(shape, kRowChunks);
    at.next();
  }
}

template <typename Config>
__device__ __forceinline__ void prepare(const ConvFwdParams& p, const ChannelTable& table, uint32_t ring,
                                        const ConvSm90Barriers<Config>& barriers) {
  RingCursor<Config::kStages> at;
  for (TileScheduler<Config> scheduler(p); scheduler.more(); scheduler.next()) {
    if constexpr (!Config::kProjects) {
      prepare_steps<Config>(p.main.shape, table, scheduler.pixel(), scheduler.main, ring, barriers, at);
    } else {
      prepare_steps<Config>(p.projection.shape, table, scheduler.pixel(), scheduler.projection, ring, barriers, at);
      // The main convolution has no prologue. Pass its stages on, so that `full` and `ready` stay in the same phase.
      for (int32_t left = scheduler.main.count; left > 0; --left) {
        ptx::mbarrier_wait_parity(barriers.full(at.stage), at.parity);
        ptx::mbarrier_arrive(barriers.ready(at.stage));
        at.next();
      }
    }
  }
}

// A consumer: sum = this warp group's part of the product, over the steps of one convolution.
template <typename Config>
__device__ __forceinline__ void multiply(typename Config::Sum& sum, int32_t steps, uint32_t ring, uint32_t consumer,
                                         const ConvSm90Barriers<Config>& barriers, RingCursor<Config::kStages>& at) {
  const uint64_t weights =
      smem_descriptor<Swizzle::k128>(ring + Config::kPixelBytes + consumer * Config::kChannelStride * kRowBytes);
  const uint64_t pixels = smem_descriptor<Swizzle::k128>(ring + consumer * Config::kPixelStride * kRowBytes);
  const bool elected = threadIdx.x % 32 == 0;  // one arrival per warp: a wait covers only the warp's own wgmmas
  int last = 0;
  for (int32_t step = 0; step < steps; ++step) {
    const uint64_t stage_weights = moved(weights, at.stage * Config::kStageBytes);
    const uint64_t stage_pixels = moved(pixels, at.stage * Config::kStageBytes);
    ptx::mbarrier_wait_parity(Config::kHasPrologue ? barriers.ready(at.stage) : barriers.full(at.stage), at.parity);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t k = 0; k < kRowBytes; k += 32)
      wgmma<Config::kDtype, Config::kColumns>(sum, moved(stage_weights, k), moved(stage_pixels, k), step > 0 || k > 0);
    ptx::wgmma_commit_group();
    // The previous step's wgmmas have completed: release its stage.
    ptx::wgmma_wait_group<1>();
    if (step > 0 && elected) ptx::mbarrier_arrive(barriers.empty(last));
    last = at.stage;
    at.next();
  }
  // The other consumer's wgmmas queue behind these.
  if (Config::kPingpong && elected) ptx::mbarrier_arrive(barriers.order(1 - consumer));
  ptx::wgmma_wait_group<0>();
  if (elected) ptx::mbarrier_arrive(barriers.empty(last));
}

// Skips the stages of the other consumer's tile.
template <int kStages>
__device__ __forceinline__ void skip(RingCursor<kStages>& at, int32_t steps) {
  at.stage += steps;
  at.parity ^= at.stage / kStages & 1;
  at.stage %= kStages;
}

// Stores a work unit's sums as the threads hold them. Threads of conv_sm90_finish read them in the same order, so each
// warp moves 512 contiguous bytes both ways, without a transpose. Pixels and channels past the end are skipped.
template <typename Config>
__device__ __forceinline__ void store_partial(const typename Config::Sum& sum, const ConvFwdParams& p, int32_t partial,
                                              uint32_t consumer, int32_t pixel, int32_t channel) {
  const int32_t pixels = p.main.shape.n * p.main.shape.p * p.main.shape.q;
  if (channel >= p.main.shape.k) return;
  const uint32_t part = Config::kPingpong ? 0 : consumer * (Config::kColumns * 64);
  float* out =
      p.partials + static_cast<int64_t>(partial) * (Config::kPixels * Config::kChannels) + part + threadIdx.x % 128 * 4;
#pragma unroll
  for (int j = 0; j < Config::kColumns / 8; ++j) {
    if (pixel + j / 2 * kConvSm90FinishPixels >= pixels) break;
    const float four[4] = {sum[j * 4], sum[j * 4 + 1], sum[j * 4 + 2], sum[j * 4 + 3]};
    Chunk<Dtype::kFloat32, 4>::store(reinterpret_cast<char*>(out + j * (128 * 4)), four);
  }
}

template <typename Config>
__device__ __forceinline__ void consume(const ConvFwdParams& p, uint32_t smem, uint32_t consumer,
                                        const ConvSm90Barriers<Config>& barriers) {
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const uint32_t out = smem + Config::kOut + consumer * Config::kOutBytes;
  RingCursor<Config::kStages> at;
  using Affine = RowAffine<Config::kDtype>;
  using Epilogue = std::conditional_t<has_moments(Config::kMode), MomentsEpilogue<Config>, AffineEpilogue<Config>>;
  const int32_t none = p.main.shape.k;
  Affine bn(p.main.bn, none, none), projection_bn = bn;
  int32_t known = none;
  typename Config::Sum sum, projected;
  uint32_t piece = 0;
  for (TileScheduler<Config> scheduler(p); scheduler.more(); scheduler.next(), ++piece) {
    if constexpr (Config::kPingpong) {
      if (piece % 2 != consumer) {
        skip(at, scheduler.steps());
        continue;
      }
      // Without this wait, a stage's mbarrier could be two phases behind this consumer. Parity cannot tell that.
      if (piece > 0) ptx::mbarrier_wait_parity(barriers.order(consumer), (piece - 1) / 2 & 1);
    }
    const int32_t pixel = scheduler.pixel() + consumer * Config::kPixelStride;
    const int32_t channel = scheduler.channel() + consumer * Config::kChannelStride + warp * 16;
    const bool finishes = scheduler.finishes();
    if (finishes && channel != known) {  // mostly the same for all tiles of a CTA
      known = channel;
      bn = Affine(p.main.bn, channel + lane / 4, p.main.shape.k);
      if constexpr (Config::kProjects) projection_bn = Affine(p.projection.bn, channel + lane / 4, p.main.shape.k);
    }
    if constexpr (Config::kProjects)
      if (finishes) multiply<Config>(projected, scheduler.projection.count, smem, consumer, barriers, at);
    multiply<Config>(sum, finishes ? scheduler.main.count : scheduler.steps(), smem, consumer, barriers, at);
    if constexpr (Epilogue::kStreamK) {
      if (!finishes) {
        store_partial<Config>(sum, p, scheduler.partial, consumer, pixel, channel);
        continue;
      }
    }
    ptx::mbarrier_wait_parity(barriers.open(consumer), (Config::kPingpong ? piece / 2 : piece) & 1);
    Epilogue()(sum, projected, bn, projection_bn, p, {pixel, channel + static_cast<int32_t>(lane) / 4, out}, [&] {
      ptx::fence_proxy_async();  // TMA reads through the async proxy
      ptx::bar_warp_sync(~0u);
      if (lane == 0) ptx::mbarrier_arrive(barriers.staged(consumer));
    });
  }
}

}  // namespace resnet_fused::cuda
