// sm90/conv_sm90 on the host: which kernels are compiled, what they need of shared memory. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/conv.h"

namespace resnet_fused::cuda {

// A block multiplies operands swapped: weights are the GEMM's rows, 64 to a warpgroup, and pixels its columns. Two
// warpgroups have 64 channels each of the same pixels, or half the pixels each of 64 channels, or take turns
// (ping-pong) at tiles of 256 x 64.
struct ConvSm90Tile {
  int32_t pixels, channels, stages;
};
constexpr ConvSm90Tile kConvSm90Tiles[] = {{256, 128, 3}, {256, 64, 4}, {128, 128, 5}};

constexpr int32_t kConvSm90Depth = 64;     // channels of one tap a step: rows of 128 bytes
constexpr int32_t kConvSm90Consumers = 2;  // warpgroups
constexpr int32_t kConvSm90RowBytes = 128;
constexpr int32_t kConvSm90BarrierBytes = 256;
constexpr int32_t kConvSm90FinishPixels = 16;  // of a block of conv_sm90_finish, by 64 channels

constexpr int64_t conv_sm90_tiles(const ConvSm90Tile& tile, const ConvShape& q) {
  const int64_t pixels = static_cast<int64_t>(q.n) * q.p * q.q;
  return (pixels + tile.pixels - 1) / tile.pixels * ((q.k + tile.channels - 1) / tile.channels);
}

// Whether a thread has nothing to hold but one product's sums.
constexpr bool conv_sm90_has_registers(ConvFwdMode mode) { return !has_projection(mode) && !has_prologue(mode); }

// Whether a tile is one warpgroup's own, and the next tile the other's: an epilogue then runs under the other's
// products.
constexpr bool conv_sm90_takes_turns(const ConvSm90Tile& tile, ConvFwdMode mode) {
  return tile.channels == 64 && conv_sm90_has_registers(mode);
}

// Columns of one warpgroup's product.
constexpr int32_t conv_sm90_columns(const ConvSm90Tile& tile, ConvFwdMode mode) {
  return tile.channels == 64 && !conv_sm90_takes_turns(tile, mode) ? tile.pixels / kConvSm90Consumers : tile.pixels;
}

// Pixels of a part of the statistics: each warpgroup makes its own of the pixels and channels that it has.
constexpr int32_t conv_sm90_part(const ConvSm90Tile& tile, ConvFwdMode mode) { return conv_sm90_columns(tile, mode); }

// 256 columns are 128 sums a thread. A projection would have as many more waiting beside them, and the warpgroup of a
// prologue leaves a thread 128 registers at the start, of which the instruction alone wants 154.
constexpr bool conv_sm90_takes(const ConvSm90Tile& tile, ConvFwdMode mode) {
  return conv_sm90_has_registers(mode) || conv_sm90_columns(tile, mode) <= 128;
}

// Producer, consumers, and with a prologue the warpgroup that applies it.
constexpr int32_t conv_sm90_threads(ConvFwdMode mode) { return 128 * (1 + kConvSm90Consumers + has_prologue(mode)); }

// Dynamic shared memory: the ring, each consumer's part of the output, the barriers, the prologue's scale and shift.
constexpr int32_t conv_sm90_smem(const ConvSm90Tile& tile, ConvFwdMode mode, int32_t prologue_channels) {
  return tile.stages * (tile.pixels + tile.channels) * kConvSm90RowBytes +
         kConvSm90Consumers * conv_sm90_columns(tile, mode) * kConvSm90RowBytes + kConvSm90BarrierBytes +
         (has_prologue(mode) ? prologue_channels * 8 : 0);
}

// Stream-K. The steps of tiles that would leave SMs idle, the tail, are cut into equal shares, one per block, which
// write partial sums for conv_sm90_finish. A unit is one convolution of one tile of the tail: its projection, then the
// main one.
constexpr int32_t conv_sm90_unit(ConvFwdMode mode, int32_t tile, bool main) {
  return has_projection(mode) ? 2 * tile + main : tile;
}

// Share i writes unit u's sums to partial tile i + u: each step along the tail is into a new share, a new unit or both.
constexpr int64_t conv_sm90_partials(ConvFwdMode mode, int64_t tail, int64_t shares) {
  return shares + tail * (1 + has_projection(mode)) - 1;
}

constexpr int64_t conv_sm90_workspace(const ConvSm90Tile& tile, ConvFwdMode mode, int64_t tail, int64_t shares) {
  return conv_sm90_partials(mode, tail, shares) * tile.pixels * tile.channels * 4;
}

// Whether the tail can be cut so: kernels multiply the two in 32 bits.
constexpr bool conv_sm90_shares_fit(int64_t tail_steps, int64_t shares) {
  return shares <= tail_steps && tail_steps <= 0x7fffffff / shares - 1;
}

}  // namespace resnet_fused::cuda
