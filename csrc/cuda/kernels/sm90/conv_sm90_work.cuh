// The work of a persistent CTA, piece by piece: docs/kernels/sm90_conv_fwd.md, "Stream-K".
#pragma once
#include "cuda/kernels/sm90/conv_sm90.h"

namespace resnet_fused::cuda {

__device__ __forceinline__ int32_t conv_sm90_steps(const ConvShape& shape) {
  return shape.r * shape.s * (shape.c / kConvSm90Depth);
}

// The steps of the stream-K tiles, tile after tile and each tile's projection first, cut into work units whose lengths
// differ by at most one step. The host checks conv_sm90_units_fit, so the products fit 32 bits.
struct StreamK {
  int32_t steps, units;

  __device__ __forceinline__ int32_t begin(int32_t unit) const { return unit * steps / units; }
  // The unit that contains a step.
  __device__ __forceinline__ int32_t of(int32_t step) const { return ((step + 1) * units - 1) / steps; }
};

struct StepRange {
  int32_t first = 0, count = 0;
};

// Data-parallel tiles first, then stream-K units: one piece for each convolution of each tile that a unit touches.
// Neighbouring CTAs work on the same pixels and find them in L2.
template <typename Config>
struct TileScheduler {
  int32_t projection_steps = 0, tile_steps, tiles_k;  // of a tile: its projection's steps, all its steps
  int32_t dp_tiles, item;
  StreamK streamk;
  int32_t at = 0, end = 0;     // steps of the current unit
  int32_t tile, partial;       // partial: index of the piece's partial tile
  StepRange projection, main;  // a data-parallel tile has both, a piece of a unit one of them

  __device__ __forceinline__ explicit TileScheduler(const ConvFwdParams& p) : item(blockIdx.x) {
    const ConvShape& shape = p.main.shape;
    tile_steps = conv_sm90_steps(shape);
    if constexpr (Config::kProjects)
      projection_steps = conv_sm90_steps(p.projection.shape), tile_steps += projection_steps;
    tiles_k = (shape.k + Config::kChannels - 1) / Config::kChannels;
    const int32_t tiles = (shape.n * shape.p * shape.q + Config::kPixels - 1) / Config::kPixels * tiles_k;
    dp_tiles = p.sk_units ? p.dp_tiles : tiles;
    streamk = {(tiles - dp_tiles) * tile_steps, p.sk_units};
    begin_item();
  }

  __device__ __forceinline__ bool more() const { return item < dp_tiles + streamk.units; }
  __device__ __forceinline__ bool finishes() const { return item < dp_tiles; }
  __device__ __forceinline__ int32_t pixel() const { return tile / tiles_k * Config::kPixels; }
  __device__ __forceinline__ int32_t channel() const { return tile % tiles_k * Config::kChannels; }
  __device__ __forceinline__ int32_t steps() const { return projection.count + main.count; }

  __device__ __forceinline__ void next() {
    if (!finishes()) {
      at += steps();
      if (at < end) return begin_piece();
    }
    item += gridDim.x;
    begin_item();
  }

 private:
  __device__ __forceinline__ void begin_item() {
    if (finishes()) {
      tile = item;
      projection = {0, projection_steps};
      main = {0, tile_steps - projection_steps};
    } else if (more()) {
      at = streamk.begin(item - dp_tiles), end = streamk.begin(item - dp_tiles + 1);
      begin_piece();
    }
  }

  __device__ __forceinline__ void begin_piece() {
    const int32_t index = at / tile_steps, first = at % tile_steps, left = end - at;
    tile = dp_tiles + index;
    if (first < projection_steps) {
      projection = {first, left < projection_steps - first ? left : projection_steps - first};
      main = {};
    } else {
      projection = {};
      main = {first - projection_steps, left < tile_steps - first ? left : tile_steps - first};
    }
    partial = item - dp_tiles + conv_sm90_segment(Config::kMode, index, main.count > 0);
  }
};

}  // namespace resnet_fused::cuda
