// Main loop: a ring of stages in shared memory, filled by cp.async and read by ldmatrix.
#pragma once
#include "cuda/device/ptx/cp_async.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/device/tile/channel_table.cuh"
#include "cuda/device/tile/im2col.cuh"
#include "cuda/kernels/sm80/conv_config.cuh"

namespace resnet_fused::cuda {

// Applies relu(bn(.)) in place to the chunks that this thread copied, before any other thread may read them. Padding
// must stay zero, so chunks of padding are skipped; the thread that copied a chunk knows which it was.
template <typename Config>
struct BnReluPrologue {
  const ChannelTable& table;
  int32_t chunks;      // per input pixel
  int32_t chunk;       // of this thread in the next stage
  uint64_t valid = 0;  // kRowsA bits per stage in flight, the oldest in the highest bits

  static_assert(Config::kRowsA * (Config::kStages - 1) <= 64);

  __device__ __forceinline__ BnReluPrologue(const ChannelTable& table, const TapCursor& at)
      : table(table), chunks(at.chunks), chunk(at.chunk) {}

  __device__ __forceinline__ void copied(uint32_t rows) { valid = valid << Config::kRowsA | rows; }

  __device__ __forceinline__ void apply(uint32_t a_tile, int32_t row, int32_t column) {
    const auto rows = static_cast<uint32_t>(valid >> (Config::kRowsA * (Config::kStages - 2)));
    const ChannelRegisters<Config::kPerChunk> bn(table, chunk * Config::kPerChunk);
#pragma unroll
    for (int i = 0; i < Config::kRowsA; ++i) {
      if (!(rows >> i & 1)) continue;
      const uint32_t address = a_tile + swizzled(row + i * Config::kCopyRows, column);
      typename Config::Data x;
      ptx::ld_shared_v4(x.words, address);
      float v[Config::kPerChunk];
#pragma unroll
      for (int e = 0; e < Config::kPerChunk; ++e) v[e] = relu_of(bn.apply(x.get(e), e));
      Config::Data::pack(x.words, v);
      ptx::st_shared_v4(address, x.words);
    }
    chunk += kRowChunks;
    while (chunk >= chunks) chunk -= chunks;
  }
};

struct NoPrologue {
  __device__ __forceinline__ NoPrologue(const ChannelTable&, const TapCursor&) {}
  __device__ __forceinline__ void copied(uint32_t) {}
  __device__ __forceinline__ void apply(uint32_t, int32_t, int32_t) {}
};

// warp.sum = the tile at (m0, n0) over steps [first, last) of the depth. On return the ring is free.
template <typename Config, typename Pro>
__device__ __forceinline__ void multiply_tile(typename Config::Warp& warp, const ConvOperands& o, uint32_t ring,
                                              const ChannelTable& pre, int32_t m0, int32_t n0, int32_t first,
                                              int32_t last) {
  constexpr int kPer = Config::kPerChunk, kStages = Config::kStages;
  const ConvShape& shape = o.shape;
  const int32_t thread = threadIdx.x, column = thread % kRowChunks, row = thread / kRowChunks;
  const uint32_t lane = threadIdx.x % 32, part = threadIdx.x / 32;

  constexpr int kSize = kSizeOf<Config::kDtype>;
  TapCursor at(shape, kPer, first * static_cast<int32_t>(kRowChunks) + column);
  const PixelRows<Config::kRowsA> pixels(shape, m0 + row, Config::kCopyRows);
  Pro prologue(pre, at);
  const char* x = static_cast<const char*>(o.x);
  const int64_t filter = static_cast<int64_t>(shape.r) * shape.s * shape.c * kSize;  // bytes per output channel
  const char* weight = static_cast<const char*>(o.weight) + (n0 + row) * filter +
                       (first * static_cast<int64_t>(kRowChunks) + column) * kChunkBytes;

  // Invalid addresses may point anywhere: they are not read.
  const auto copy_step = [&](int32_t stage) {
    const uint32_t a_tile = ring + stage * Config::kStageBytes, b_tile = a_tile + Config::kBytesA;
    const bool inside = at.inside(shape);
    const int32_t offset = at.offset(shape, kPer);
    uint32_t rows = 0;
#pragma unroll
    for (int i = 0; i < Config::kRowsA; ++i) {
      const bool valid = inside && pixels.valid(i, at);
      ptx::cp_async_cg_16(a_tile + swizzled(row + i * Config::kCopyRows, column),
                          x + static_cast<int64_t>(pixels.offset[i] + offset) * kSize, valid);
      rows |= static_cast<uint32_t>(valid) << i;
    }
#pragma unroll
    for (int i = 0; i < Config::kRowsB; ++i)
      ptx::cp_async_cg_16(b_tile + swizzled(row + i * Config::kCopyRows, column),
                          weight + i * Config::kCopyRows * filter,
                          inside && n0 + row + i * Config::kCopyRows < shape.k);
    prologue.copied(rows);
    at.advance(shape, kRowChunks);
    weight += kRowBytes;
  };

  // Groups are committed even if nothing is left to copy, so that waiting for all but the latest kStages - 2 always
  // means waiting for the next step.
  for (int i = 0; i < kStages - 1; ++i) {
    if (first + i < last)
      copy_step(i);
    else
      prologue.copied(0);
    ptx::cp_async_commit_group();
  }
  warp.clear();
  int32_t stage = 0, free_stage = kStages - 1;
  for (int32_t step = first; step < last; ++step) {
    const uint32_t a_tile = ring + stage * Config::kStageBytes;
    ptx::cp_async_wait_group<kStages - 2>();
    prologue.apply(a_tile, row, column);
    // After this barrier all threads see the whole stage, and the stage read in the previous step is free.
    ptx::bar_sync_all();
    if (step + kStages - 1 < last)
      copy_step(free_stage);
    else
      prologue.copied(0);
    ptx::cp_async_commit_group();
    warp.multiply(a_tile, part / Config::kWarpsN * Config::kWarpM, a_tile + Config::kBytesA,
                  part % Config::kWarpsN * Config::kWarpN, lane);
    stage = stage + 1 == kStages ? 0 : stage + 1;
    free_stage = free_stage + 1 == kStages ? 0 : free_stage + 1;
  }
  ptx::cp_async_wait_group<0>();
  ptx::bar_sync_all();
}

}  // namespace resnet_fused::cuda
