// The work of a persistent CTA, piece by piece: docs/kernels/sm90_conv_fwd.md, "Stream-K".
#pragma once
#include "cuda/sm90/conv_sm90.h"

namespace resnet_fused::cuda {

__device__ __forceinline__ int32_t conv_sm90_steps(const ConvShape& shape) {
  return shape.r * shape.s * (shape.c / kConvSm90Depth);
}

// The tail's steps, tile after tile and each tile's projection first, cut into `shares` parts whose lengths differ by
// at most one step. The host checks conv_sm90_shares_fit, so the products fit 32 bits.
struct Tail {
  int32_t steps, shares;

  __device__ __forceinline__ int32_t begin(int32_t share) const { return share * steps / shares; }
  // The share that contains a step.
  __device__ __forceinline__ int32_t of(int32_t step) const { return ((step + 1) * shares - 1) / steps; }
};

struct StepRange {
  int32_t first = 0, count = 0;
};

// Whole tiles first, then shares of the tail: one piece for each convolution of each tile that a share touches.
// Neighbouring CTAs work on the same pixels and find them in L2.
template <typename Config>
struct WorkWalk {
  int32_t side_steps = 0, tile_steps, tiles_k;  // of a tile: its projection's steps, all its steps
  int32_t whole, item;
  Tail tail;
  int32_t at = 0, end = 0;  // of the current share: steps of the tail
  int32_t tile, partial;    // partial: index of the piece's partial tile
  StepRange side, main;     // a whole tile has both, a share's piece one of them

  __device__ __forceinline__ explicit WorkWalk(const ConvFwdParams& p) : item(blockIdx.x) {
    const ConvShape& shape = p.main.shape;
    tile_steps = conv_sm90_steps(shape);
    if constexpr (Config::kProjects) side_steps = conv_sm90_steps(p.projection.shape), tile_steps += side_steps;
    tiles_k = (shape.k + Config::kChannels - 1) / Config::kChannels;
    const int32_t tiles = (shape.n * shape.p * shape.q + Config::kPixels - 1) / Config::kPixels * tiles_k;
    whole = p.shares ? p.whole : tiles;
    tail = {(tiles - whole) * tile_steps, p.shares};
    begin_item();
  }

  __device__ __forceinline__ bool more() const { return item < whole + tail.shares; }
  __device__ __forceinline__ bool finishes() const { return item < whole; }
  __device__ __forceinline__ int32_t pixel() const { return tile / tiles_k * Config::kPixels; }
  __device__ __forceinline__ int32_t channel() const { return tile % tiles_k * Config::kChannels; }
  __device__ __forceinline__ int32_t steps() const { return side.count + main.count; }

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
      side = {0, side_steps};
      main = {0, tile_steps - side_steps};
    } else if (more()) {
      at = tail.begin(item - whole), end = tail.begin(item - whole + 1);
      begin_piece();
    }
  }

  __device__ __forceinline__ void begin_piece() {
    const int32_t index = at / tile_steps, first = at % tile_steps, left = end - at;
    tile = whole + index;
    if (first < side_steps) {
      side = {first, left < side_steps - first ? left : side_steps - first};
      main = {};
    } else {
      side = {};
      main = {first - side_steps, left < tile_steps - first ? left : tile_steps - first};
    }
    partial = item - whole + conv_sm90_unit(Config::kMode, index, main.count > 0);
  }
};

}  // namespace resnet_fused::cuda
