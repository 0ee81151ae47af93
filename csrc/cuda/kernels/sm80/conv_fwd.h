// sm80/conv_fwd on the host: which kernels are compiled, and their shared memory. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/device/types.h"
#include "cuda/kernels/conv.h"

namespace resnet_fused::cuda {

// Tiles that are compiled for every dtype and mode.
struct ConvFwdTile {
  int32_t m, n, stages;
  int32_t threads;
};
constexpr ConvFwdTile kConvFwdTiles[] = {{128, 128, 3, 256}, {128, 64, 3, 128}, {64, 64, 4, 128}};

constexpr int32_t kConvFwdRowBytes = 128;  // per operand row of a stage: the depth of one step

constexpr int32_t conv_fwd_depth(Dtype dtype) { return kConvFwdRowBytes / size_of(dtype); }

// Slices of the workspace when splits > 1.
constexpr int32_t conv_fwd_slices(ConvMode mode, int32_t splits) { return splits + has_projection(mode); }

// Dynamic shared memory: the ring of stages, which the epilogue reuses, and tables of scale and shift for the tile's
// output channels, for those of the projection, and for every input channel of a prologue.
constexpr int32_t conv_fwd_smem(const ConvFwdTile& tile, ConvMode mode, int32_t prologue_channels) {
  const int32_t table = 2 * 4;  // bytes per channel
  return tile.stages * (tile.m + tile.n) * kConvFwdRowBytes + tile.n * table * (1 + has_projection(mode)) +
         (has_prologue(mode) ? prologue_channels * table : 0);
}

}  // namespace resnet_fused::cuda
