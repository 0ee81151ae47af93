// sm90/block_fwd on the host: the shapes it is compiled for, how it cuts images into tiles, what it needs of shared
// memory. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/batch_norm.h"

namespace resnet_fused::cuda {

// out = relu(bn[1](conv[1](relu(bn[0](conv[0](x))))) + x): 3x3, stride 1, padding 1, `channels` in and out. Activations
// are NHWC, weights KRSC, all dense, every address a multiple of 16 bytes.
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

// A kernel's constants. A tile's pixels are numbered row by row over one pitch, whoever reads them: `patch` and
// `middle` positions of the input and of what lies between the convolutions are kept, and the products have first and
// second columns, a position each. A team of warpgroups (one for every 64 channels) has a tile of its own.
struct BlockFwdShape {
  int32_t channels;
  int32_t first, second;
  int32_t patch, middle;
  int32_t teams;
  int32_t stages;   // 64 channels of a tap's weights each
  int32_t cluster;  // blocks that bring the weights for each other
};
constexpr BlockFwdShape kBlockFwdShapes[] = {
    {64, 128, 96, 171, 139, 2, 18, 1},  // every stage of both convolutions: the weights stay
    {128, 96, 64, 131, 99, 1, 10, 2},   // a ring: every tile streams the weights
};

constexpr int32_t kBlockFwdTaps = 9;
constexpr int32_t kBlockFwdDepth = 64;  // channels of one tap a step: rows of 128 bytes
constexpr bool block_fwd_keeps_weights(const BlockFwdShape& s) {
  return s.stages == 2 * kBlockFwdTaps * s.channels / kBlockFwdDepth;
}

constexpr int32_t kBlockFwdThreads = 384;  // two warpgroups that multiply, one that loads
constexpr int32_t kBlockFwdBarrierBytes = 384;

// How an image is cut: `rows` x `columns` pixels of the output a tile. The input's patch is two wider on each side, the
// middle's one.
struct BlockFwdTiling {
  int32_t rows = 0, columns = 0;
  int32_t pitch = 0;  // positions from a row of a tile to the next, columns + 4
  int32_t tiles_h = 0, tiles_w = 0;
};

// Whether a tile of this size has its place: the last pixel that each convolution needs is among its columns, and the
// last position that a tap of the last column meets is kept.
constexpr bool block_fwd_fits(const BlockFwdShape& s, int32_t rows, int32_t columns) {
  const int32_t pitch = columns + 4, reach = 2 * pitch + 2;
  return (rows + 1) * pitch + columns + 2 <= s.first && (rows - 1) * pitch + columns <= s.second &&
         s.first + reach <= s.patch && s.second + reach <= s.middle;
}

// Every tile costs the same: as few as can be, then as little halo as can be.
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

// Blocks that a GPU of so many SMs runs at once, whole clusters.
constexpr int32_t block_fwd_most_blocks(const BlockFwdShape& s, int32_t sm_count) {
  return (sm_count < s.cluster ? s.cluster : sm_count) / s.cluster * s.cluster;
}

constexpr int64_t block_fwd_tiles(const BlockFwdTiling& t, int32_t n) { return int64_t{n} * t.tiles_h * t.tiles_w; }

constexpr int32_t block_fwd_smem(const BlockFwdShape& s) {
  return s.stages * s.channels * kBlockFwdDepth * 2 + s.teams * (s.patch + s.middle) * s.channels * 2 +
         kBlockFwdBarrierBytes;
}

}  // namespace resnet_fused::cuda
