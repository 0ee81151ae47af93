// One tile of the direct convolution: a register block, then scale, shift, residual and ReLU.
#pragma once
#include <utility>

#include "cpu/simd/register_block.h"

namespace resnet_fused::cpu::simd::direct {
namespace {

constexpr int64_t kCacheLine = 64;  // bytes
constexpr int kShortRow = 7;        // pixels

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// One tile: MR pixels, in rows of W, by NV registers of channels.
struct Tile {
  Pixels pixels;  // in the input
  Runs runs;
  const float *scale, *shift;  // of this channel block
  int k, channels_left;        // row length of out; channels of this block that exist
  int ahead;  // distance in channels to the outputs and residuals to prefetch: those of the next block, if any
  bool relu;
};

// The reduction hides the latency of an epilogue's operands.
template <typename Elem>
inline __attribute__((always_inline)) void prefetch_epilogue(const Tile& t, const Elem* residual, const Elem* out,
                                                             int pixels, int channels) {
  constexpr int kLine = kCacheLine / sizeof(Elem);
  for (int m = 0; m < pixels; ++m)
    for (int at = t.ahead; at < t.ahead + channels; at += kLine) {
      if (residual) __builtin_prefetch(residual + static_cast<int64_t>(m) * t.k + at, 0, 3);
      __builtin_prefetch(out + static_cast<int64_t>(m) * t.k + at, 1, 3);
    }
}

// Stores act(acc * scale + shift + residual), rounded once.
template <typename A, int MR, int NV>
inline __attribute__((always_inline)) void finish(const Tile& t, const typename A::V::Reg (&acc)[MR][NV],
                                                  const typename A::Elem* residual, typename A::Elem* out) {
  using V = typename A::V;
  using Reg = typename V::Reg;
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const typename V::Mask lanes = V::first(t.channels_left - v * V::kLanes);
    const Reg scale = V::load(t.scale + v * V::kLanes), shift = V::load(t.shift + v * V::kLanes);
#pragma GCC unroll 14
    for (int m = 0; m < MR; ++m) {
      const int64_t at = static_cast<int64_t>(m) * t.k + v * V::kLanes;
      Reg y = V::fmadd(acc[m][v], scale, shift);
      if (residual) y += A::load(residual + at, lanes);
      if (t.relu) y = relu<V>(y);
      A::store(out + at, y, lanes);
    }
  }
}

template <typename A, int MR, int NV, int W>
void run_tile(const Tile& t, const typename A::Operand* x, const typename A::Operand* w,
              const typename A::Elem* residual, typename A::Elem* out) {
  using V = typename A::V;
  using Reg = typename V::Reg;
  prefetch_epilogue(t, residual, out, MR, NV * V::kLanes);
  Reg acc[MR][NV];
  accumulate<A, MR, NV, W>(acc, x, t.pixels, t.runs, w);
  finish<A, MR, NV>(t, acc, residual, out);
}

template <typename A>
using TileFn = void (*)(const Tile&, const typename A::Operand*, const typename A::Operand*, const typename A::Elem*,
                        typename A::Elem*);

// Instances of run_tile with `Rows` rows of 1, 2, ... pixels.
template <typename A, int NV, int Rows = 1, int... I>
TileFn<A> tile_of(int width, std::integer_sequence<int, I...>) {
  static constexpr TileFn<A> instances[] = {run_tile<A, Rows*(I + 1), NV, I + 1>...};
  return instances[width - 1];
}

// The function for a tile of `rows` rows of mr pixels by nv registers.
template <typename A>
TileFn<A> tile_fn(int rows, int mr, int nv) {
  using V = typename A::V;
  if constexpr (V::kRowsOfShort > 1)
    if (rows == V::kRowsOfShort) {
      constexpr auto kWidths = std::make_integer_sequence<int, kShortRow>();
      return nv == 1 ? tile_of<A, 1, V::kRowsOfShort>(mr, kWidths) : tile_of<A, 2, V::kRowsOfShort>(mr, kWidths);
    }
  if (nv == V::kManyVectors) return tile_of<A, V::kManyVectors>(mr, std::make_integer_sequence<int, V::kFewPixels>());
  const auto pixels = std::make_integer_sequence<int, V::kPixels>();
  return nv == 1 ? tile_of<A, 1>(mr, pixels) : tile_of<A, 2>(mr, pixels);
}

template <typename V>
constexpr int widest_tile(int nv) {
  return nv == V::kManyVectors ? V::kFewPixels : V::kPixels;
}

// Channel blocks: as many of `vectors` registers as fit, then narrower ones.
template <typename V>
int block_vectors(int k, int at, int vectors) {
  const int left = ceil_div(k - at, V::kLanes);
  return left >= vectors ? vectors : left >= 2 ? 2 : 1;
}

}  // namespace
}  // namespace resnet_fused::cpu::simd::direct
