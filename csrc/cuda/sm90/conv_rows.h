// sm90/conv_rows on the host: which kernels are compiled, what they take, what they need of shared memory. Pure: no
// torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/conv.h"

namespace resnet_fused::cuda {

// A tile is so many rows of so many columns of one image's output, ragged at its lower and right edge. Columns come in
// multiples of 8: then the patch's rows begin where the swizzle does, and a tap's row is an offset of whole rows.
// `sets` of patches and of output tiles: one for the two consumers, or where there is room one for each.
struct ConvRowsTile {
  int32_t rows, columns, sets;
};
constexpr ConvRowsTile kConvRowsTiles[] = {{4, 56, 1}, {7, 32, 1}, {8, 32, 1}, {16, 16, 1}, {8, 8, 2}};

constexpr int32_t kConvRowsChannels = 64;  // in and out: a pixel is one row of 128 bytes
constexpr int32_t kConvRowsTaps = 3;       // of the filter, each way
constexpr int32_t kConvRowsRowBytes = 128;
constexpr int32_t kConvRowsPatches = kConvRowsTaps;  // of a tile: the input as one column of the filter meets it
constexpr int32_t kConvRowsConsumers = 2;            // warpgroups, each with tiles of its own
constexpr int32_t kConvRowsThreads = 128 * (1 + kConvRowsConsumers);
constexpr int32_t kConvRowsBarrierBytes = 256;

// The 3x3 convolution of 64 channels that keeps an image's size: stages of ResNets that have no bottleneck begin so.
constexpr bool conv_rows_takes(const ConvShape& q) {
  return q.c == kConvRowsChannels && q.k == kConvRowsChannels && q.r == kConvRowsTaps && q.s == kConvRowsTaps &&
         q.stride_h == 1 && q.stride_w == 1 && q.pad_h == 1 && q.pad_w == 1 && q.dil_h == 1 && q.dil_w == 1;
}

constexpr int32_t conv_rows_pixels(const ConvRowsTile& tile) { return tile.rows * tile.columns; }

constexpr int64_t conv_rows_tiles(const ConvRowsTile& tile, const ConvShape& q) {
  return int64_t{q.n} * ((q.p + tile.rows - 1) / tile.rows) * ((q.q + tile.columns - 1) / tile.columns);
}

// Bytes of the filter, which stays; of a patch, with the rows above and below the tile's; of the output tile.
constexpr int32_t kConvRowsFilterBytes = kConvRowsTaps * kConvRowsTaps * kConvRowsChannels * kConvRowsRowBytes;
constexpr int32_t conv_rows_patch_bytes(const ConvRowsTile& tile) {
  return (tile.rows + kConvRowsTaps - 1) * tile.columns * kConvRowsRowBytes;
}
constexpr int32_t conv_rows_out_bytes(const ConvRowsTile& tile) { return conv_rows_pixels(tile) * kConvRowsRowBytes; }

constexpr int32_t conv_rows_smem(const ConvRowsTile& tile) {
  return kConvRowsFilterBytes +
         tile.sets * (kConvRowsPatches * conv_rows_patch_bytes(tile) + conv_rows_out_bytes(tile)) +
         kConvRowsBarrierBytes;
}

}  // namespace resnet_fused::cuda
