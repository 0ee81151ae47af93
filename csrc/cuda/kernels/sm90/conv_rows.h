// Host side of sm90/conv_rows: compiled tiles, supported shapes, shared memory. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/kernels/conv.h"

namespace resnet_fused::cuda {

// A tile is `rows` x `columns` output pixels of one image, ragged at the image's lower and right edge. Columns are a
// multiple of 8, the swizzle's period, so a filter row only offsets the operand's address by whole rows of the patch.
// `sets` counts buffers of patches and output: one shared by both consumers or, where they fit, one each.
struct ConvRowsTile {
  int32_t rows, columns, sets;
};
constexpr ConvRowsTile kConvRowsTiles[] = {{4, 56, 1}, {7, 32, 1}, {8, 32, 1}, {16, 16, 1}, {8, 8, 2}};

constexpr int32_t kConvRowsChannels = 64;  // in and out: a pixel is a 128-byte row
constexpr int32_t kConvRowsTaps = 3;       // filter height and width
constexpr int32_t kConvRowsRowBytes = 128;
constexpr int32_t kConvRowsPatches = kConvRowsTaps;  // per tile: the input shifted for each filter column
constexpr int32_t kConvRowsConsumers = 2;            // warp groups, taking alternate tiles
constexpr int32_t kConvRowsThreads = 128 * (1 + kConvRowsConsumers);
constexpr int32_t kConvRowsBarrierBytes = 256;

// 3x3, stride 1, padding 1, 64 channels in and out: the first stage of a ResNet of BasicBlocks.
constexpr bool conv_rows_takes(const ConvShape& q) {
  return q.c == kConvRowsChannels && q.k == kConvRowsChannels && q.r == kConvRowsTaps && q.s == kConvRowsTaps &&
         q.stride_h == 1 && q.stride_w == 1 && q.pad_h == 1 && q.pad_w == 1 && q.dil_h == 1 && q.dil_w == 1;
}

constexpr int32_t conv_rows_pixels(const ConvRowsTile& tile) { return tile.rows * tile.columns; }

constexpr int64_t conv_rows_tiles(const ConvRowsTile& tile, const ConvShape& q) {
  return int64_t{q.n} * ((q.p + tile.rows - 1) / tile.rows) * ((q.q + tile.columns - 1) / tile.columns);
}

// Bytes of the resident filter, of a patch (the tile and one row above and below it), and of an output tile.
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
