// Host side of sm90/conv_sm90: compiled tiles and modes, shared memory, stream-K. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/kernels/conv.h"

namespace resnet_fused::cuda {

// Operands are swapped: weights are the GEMM's rows, 64 per warp group, and pixels its columns. The two consumer warp
// groups take 64 channels each of the same pixels, or half the pixels each of the same 64 channels, or alternate whole
// tiles (ping-pong, 256 x 64).
struct ConvSm90Tile {
  int32_t pixels, channels, stages;
};
constexpr ConvSm90Tile kConvSm90Tiles[] = {{256, 128, 3}, {256, 64, 4}, {128, 128, 5}};

constexpr int32_t kConvSm90Depth = 64;     // input channels of one tap per step: 128-byte rows
constexpr int32_t kConvSm90Consumers = 2;  // warp groups
constexpr int32_t kConvSm90RowBytes = 128;
constexpr int32_t kConvSm90BarrierBytes = 256;
constexpr int32_t kConvSm90FinishPixels = 16;  // per CTA of conv_sm90_finish, times 64 channels

constexpr int64_t conv_sm90_tiles(const ConvSm90Tile& tile, const ConvShape& q) {
  const int64_t pixels = static_cast<int64_t>(q.n) * q.p * q.q;
  return (pixels + tile.pixels - 1) / tile.pixels * ((q.k + tile.channels - 1) / tile.channels);
}

// Whether registers hold one product's accumulators only: the mode has neither projection nor prologue.
constexpr bool conv_sm90_has_registers(ConvMode mode) { return !has_projection(mode) && !has_prologue(mode); }

// Ping-pong: whether tiles alternate between the consumer warp groups, so that one's epilogue overlaps the other's main
// loop.
constexpr bool conv_sm90_pingpong(const ConvSm90Tile& tile, ConvMode mode) {
  return tile.channels == 64 && conv_sm90_has_registers(mode);
}

// Columns of one warp group's product.
constexpr int32_t conv_sm90_columns(const ConvSm90Tile& tile, ConvMode mode) {
  return tile.channels == 64 && !conv_sm90_pingpong(tile, mode) ? tile.pixels / kConvSm90Consumers : tile.pixels;
}

// Pixels per part of the statistics: each warp group writes a part for its own pixels and channels.
constexpr int32_t conv_sm90_part(const ConvSm90Tile& tile, ConvMode mode) { return conv_sm90_columns(tile, mode); }

// 256 columns take 128 accumulators per thread. A projection needs as many again. With a prologue, four warp groups
// start with 128 registers per thread, while the wgmma alone needs 154.
constexpr bool conv_sm90_takes(const ConvSm90Tile& tile, ConvMode mode) {
  return conv_sm90_has_registers(mode) || conv_sm90_columns(tile, mode) <= 128;
}

// The producer warp group, the consumers and, with a prologue, the warp group that applies it.
constexpr int32_t conv_sm90_threads(ConvMode mode) { return 128 * (1 + kConvSm90Consumers + has_prologue(mode)); }

// Dynamic shared memory: pipeline stages, each consumer's output tile, mbarriers, the prologue's scale and shift.
constexpr int32_t conv_sm90_smem(const ConvSm90Tile& tile, ConvMode mode, int32_t prologue_channels) {
  return tile.stages * (tile.pixels + tile.channels) * kConvSm90RowBytes +
         kConvSm90Consumers * conv_sm90_columns(tile, mode) * kConvSm90RowBytes + kConvSm90BarrierBytes +
         (has_prologue(mode) ? prologue_channels * 8 : 0);
}

// Stream-K (Osama et al. 2023, arXiv:2301.03598): data-parallel tiles first; the steps of the remaining sk_tiles, which
// would leave SMs idle, are cut into equal work units. Units write partial sums for conv_sm90_finish. A segment is one
// convolution of one such tile: first the projection, if any, then the main convolution.
constexpr int32_t conv_sm90_segment(ConvMode mode, int32_t tile, bool main) {
  return has_projection(mode) ? 2 * tile + main : tile;
}

// Unit i writes the sums of segment s to partial tile i + s. Partial tiles are unique, because each next piece is of a
// new unit, a new segment or both.
constexpr int64_t conv_sm90_partials(ConvMode mode, int64_t sk_tiles, int64_t sk_units) {
  return sk_units + sk_tiles * (1 + has_projection(mode)) - 1;
}

constexpr int64_t conv_sm90_workspace(const ConvSm90Tile& tile, ConvMode mode, int64_t sk_tiles, int64_t sk_units) {
  return conv_sm90_partials(mode, sk_tiles, sk_units) * tile.pixels * tile.channels * 4;
}

// Whether the steps can be cut into so many units: at least a step each, and kernels compute steps * units in 32 bits.
constexpr bool conv_sm90_units_fit(int64_t sk_steps, int64_t sk_units) {
  return sk_units <= sk_steps && sk_steps <= 0x7fffffff / sk_units - 1;
}

}  // namespace resnet_fused::cuda
