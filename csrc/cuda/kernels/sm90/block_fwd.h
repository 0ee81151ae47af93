// Host side of sm90/block_fwd: compiled shapes, tiling of an image, shared memory. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/device/types.h"

namespace resnet_fused::cuda {

// out = relu(bn[1](conv[1](relu(bn[0](conv[0](x))))) + x). Both convolutions are 3x3, stride 1, padding 1, with the
// variant's `channels` in and out. Activations are NHWC, weights KRSC, all dense; every address is a multiple of 16
// bytes.
struct BlockFwdParams {
  const void* x = nullptr;
  const void* weight[2] = {};
  BatchNormVectors bn[2];
  void* out = nullptr;
  int32_t n = 0, h = 0, w = 0;
};

struct BlockFwdVariant {
  Dtype dtype;
  int32_t channels;

  bool operator==(const BlockFwdVariant& o) const { return dtype == o.dtype && channels == o.channels; }
};

// A kernel's constants. A position is a pixel's number in a tile, row by row; input and intermediate activation use the
// same pitch. Shared memory holds `patch` positions of the input and `middle` positions of the intermediate. The two
// products have `first` and `second` columns, one per position. A team is the warp groups that share a tile, one per 64
// channels.
struct BlockFwdShape {
  int32_t channels;
  int32_t first, second;
  int32_t patch, middle;
  int32_t teams;
  int32_t stages;   // of weights: each 64 input channels of one tap
  int32_t cluster;  // CTAs that multicast weights to each other
};
constexpr BlockFwdShape kBlockFwdShapes[] = {
    {64, 128, 96, 171, 139, 2, 18, 1},  // a stage for every step of both convolutions: weights are resident
    {128, 96, 64, 131, 99, 1, 10, 2},   // a pipeline: every tile streams the weights
};

constexpr int32_t kBlockFwdTaps = 9;
constexpr int32_t kBlockFwdDepth = 64;  // input channels of one tap per step: 128-byte rows
constexpr bool block_fwd_keeps_weights(const BlockFwdShape& s) {
  return s.stages == 2 * kBlockFwdTaps * s.channels / kBlockFwdDepth;
}

constexpr int32_t kBlockFwdThreads = 384;  // two consumer warp groups, one producer warp group
constexpr int32_t kBlockFwdBarrierBytes = 384;

// How an image is tiled: `rows` x `columns` output pixels per tile. The input patch adds a halo of two pixels on each
// side, the intermediate activation one.
struct BlockFwdTiling {
  int32_t rows = 0, columns = 0;
  int32_t pitch = 0;  // positions from one row of a tile to the next: columns + 4
  int32_t tiles_h = 0, tiles_w = 0;
};

// Whether a tile of this size fits: each product's columns include the last pixel that it must compute, and shared
// memory holds the last position that any tap of the last column reads.
constexpr bool block_fwd_fits(const BlockFwdShape& s, int32_t rows, int32_t columns) {
  const int32_t pitch = columns + 4, reach = 2 * pitch + 2;
  return (rows + 1) * pitch + columns + 2 <= s.first && (rows - 1) * pitch + columns <= s.second &&
         s.first + reach <= s.patch && s.second + reach <= s.middle;
}

// All tiles cost the same, so this takes the fewest tiles, and among those the smallest patch.
constexpr BlockFwdTiling block_fwd_tiling(const BlockFwdShape& s, int32_t h, int32_t w) {
  BlockFwdTiling best;
  for (int32_t rows = 1; block_fwd_fits(s, rows, 1); ++rows) {
    int32_t columns = 1;
    while (columns < w && block_fwd_fits(s, rows, columns + 1)) ++columns;
    const int32_t tiles_h = (h + rows - 1) / rows, tiles_w = (w + columns - 1) / columns;
    const int32_t even_rows = (h + tiles_h - 1) / tiles_h, even_columns = (w + tiles_w - 1) / tiles_w;
    const BlockFwdTiling t{even_rows, even_columns, even_columns + 4, tiles_h, tiles_w};
    const int64_t tiles = int64_t{t.tiles_h} * t.tiles_w, fewest = int64_t{best.tiles_h} * best.tiles_w;
    if (!best.rows || tiles < fewest || (tiles == fewest && (t.rows + 4) * t.pitch < (best.rows + 4) * best.pitch))
      best = t;
  }
  return best;
}

// CTAs resident at once on a GPU of sm_count SMs: whole clusters, at least one.
constexpr int32_t block_fwd_most_blocks(const BlockFwdShape& s, int32_t sm_count) {
  return (sm_count < s.cluster ? s.cluster : sm_count) / s.cluster * s.cluster;
}

constexpr int64_t block_fwd_tiles(const BlockFwdTiling& t, int32_t n) { return int64_t{n} * t.tiles_h * t.tiles_w; }

constexpr int32_t block_fwd_smem(const BlockFwdShape& s) {
  return s.stages * s.channels * kBlockFwdDepth * 2 + s.teams * (s.patch + s.middle) * s.channels * 2 +
         kBlockFwdBarrierBytes;
}

}  // namespace resnet_fused::cuda
