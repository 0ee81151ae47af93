// Adds the partial sums of a tile's stream-K units and runs conv_sm90's epilogue.
#pragma once
#include "cuda/device/ptx/grid.cuh"
#include "cuda/kernels/sm90/conv_sm90_roles.cuh"

namespace resnet_fused::cuda {

// conv_sm90's layout of a tile: each warp group has `columns` pixels of 64 channels. The second's part starts
// pixel_stride pixels or channel_stride channels after the first's.
struct ConvSm90Layout {
  int32_t pixels, channels, columns;
  int32_t pixel_stride, channel_stride;
  int32_t tiles_k, blocks;  // CTAs of conv_sm90_finish per tile
};

template <Dtype kDtype_, bool kProjects_>
struct ConvSm90FinishConfig {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr bool kProjects = kProjects_;
  static constexpr int kColumns = kConvSm90FinishPixels;
  static constexpr int kThreads = 128;
  static constexpr int kSmem = kColumns * kRowBytes;
  using Sum = float[kColumns / 2];

  static_assert(kThreads == kColumns * kRowChunks, "a thread has one 16-byte chunk of the output");
};

// sum = a segment's partial tiles, added in order, with the loads of four in flight.
template <typename Config>
__device__ __forceinline__ void add_partials(typename Config::Sum& sum, const char* first, int32_t count,
                                             int64_t stride) {
  constexpr int kAtOnce = 4, kChunks = Config::kColumns / 8;
  using Four = Chunk<Dtype::kFloat32, 4>;
#pragma unroll
  for (int e = 0; e < kChunks * 4; ++e) sum[e] = 0;
  for (int32_t s = 0; s < count; s += kAtOnce) {
    Four next[kAtOnce][kChunks];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int j = 0; j < kChunks; ++j)
        if (s + i < count)
          next[i][j].template load<Access::kReadOnly>(first + (s + i) * stride + j * (Config::kThreads * 16));
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int e = 0; e < kChunks * 4; ++e)
        if (s + i < count) sum[e] += next[i][e / 4].get(e % 4);
  }
}

// A CTA finishes 16 pixels of 64 channels. Its threads hold the sums as conv_sm90's consumer threads did.
template <typename Config>
__global__ void __launch_bounds__(Config::kThreads)
    conv_sm90_finish_kernel(const ConvFwdParams p, const ConvSm90Layout layout) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  constexpr int kPer = kChunkBytes / kSizeOf<Config::kDtype>;
  using Data = Chunk<Config::kDtype, kPer>;
  DYNAMIC_SMEM(memory);
  const uint32_t smem = ptx::smem_address(memory), thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const ConvShape& shape = p.main.shape;
  const int32_t index = blockIdx.x / layout.blocks, place = blockIdx.x % layout.blocks, tile = p.dp_tiles + index;
  const int32_t a_part = layout.columns / Config::kColumns, part = place / a_part;
  const int32_t pixel =
      tile / layout.tiles_k * layout.pixels + part * layout.pixel_stride + place % a_part * Config::kColumns;
  const int32_t channel = tile % layout.tiles_k * layout.channels + part * layout.channel_stride;
  const int32_t pixels = shape.n * shape.p * shape.q;
  if (pixel >= pixels || channel >= shape.k) return;

  // This thread's chunk of the output, which has a 128-byte row per pixel.
  const int32_t row = thread / kRowChunks, chunk = thread % kRowChunks;
  const bool inside = pixel + row < pixels && channel + chunk * kPer < shape.k;
  const int64_t at = (static_cast<int64_t>(pixel + row) * shape.k + channel + chunk * kPer) * kSizeOf<Config::kDtype>;
  const bool residual = !Config::kProjects && p.residual;
  Data shortcut = {};
  if (residual && inside) shortcut.template load<Access::kReadOnly>(static_cast<const char*>(p.residual) + at);

  const int32_t projection_steps = Config::kProjects ? conv_sm90_steps(p.projection.shape) : 0;
  const int32_t tile_steps = projection_steps + conv_sm90_steps(shape), first_step = index * tile_steps;
  const int32_t sk_tiles =
      (shape.n * shape.p * shape.q + layout.pixels - 1) / layout.pixels * layout.tiles_k - p.dp_tiles;
  const StreamK streamk{sk_tiles * tile_steps, p.sk_units};
  const int64_t stride = static_cast<int64_t>(layout.pixels) * layout.channels * sizeof(float);
  const char* mine = reinterpret_cast<const char*>(p.partials) + (place * Config::kColumns * 64 + thread * 4) * 4;
  // Adds the partial sums of every unit that has a step of the segment.
  const auto add = [&](typename Config::Sum& sum, int32_t segment, int32_t first, int32_t count) {
    const int32_t unit = streamk.of(first), last = streamk.of(first + count - 1);
    add_partials<Config>(sum, mine + (unit + segment) * stride, last - unit + 1, stride);
  };
  typename Config::Sum sum = {}, projected = {};
  const bool holds = channel + static_cast<int32_t>(warp) * 16 < shape.k;  // else conv_sm90's warp stored nothing
  constexpr ConvMode kMode{Prologue::kNone, Config::kProjects ? Epilogue::kProjection : Epilogue::kAffine};
  if (holds) {
    if constexpr (Config::kProjects)
      add(projected, conv_sm90_segment(kMode, index, false), first_step, projection_steps);
    add(sum, conv_sm90_segment(kMode, index, true), first_step + projection_steps, tile_steps - projection_steps);
  }

  const int32_t own = channel + warp * 16 + lane / 4;
  const RowAffine<Config::kDtype> bn(p.main.bn, own, shape.k);
  const RowAffine<Config::kDtype> projection_bn =
      Config::kProjects ? RowAffine<Config::kDtype>(p.projection.bn, own, shape.k) : bn;
  if (residual) {
    ptx::st_shared_v4(smem + swizzled(row, chunk), shortcut.words);
    ptx::bar_sync_all();
  }
  finish<Config>(sum, &projected, bn, projection_bn, residual, p.relu, smem);
  ptx::bar_sync_all();
  Data out;
  ptx::ld_shared_v4(out.words, smem + swizzled(row, chunk));
  if (inside) ptx::st_global_v4(static_cast<char*>(p.out) + at, out.words);
}

}  // namespace resnet_fused::cuda
