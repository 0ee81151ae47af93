// The tiles of the grouped convolution. A wide group has registers of output channels of its own: the direct
// convolution's tile. Narrow groups, of as many input as output channels, share one register: it multiplies permuted
// channels of a pixel instead of one broadcast channel. So no lane is wasted, and none multiplies a value of another
// group, which could be Inf or NaN.
#pragma once
#include <utility>

#include "cpu/simd/direct_tile.h"

namespace resnet_fused::cpu::simd::grouped {
namespace {

using direct::Tile, direct::TileFn;

// Whether groups of c -> k channels share a register.
template <typename A>
constexpr bool is_narrow(int c, int k) {
  return c == k && k < A::V::kLanes && A::V::kLanes % k == 0 && c % A::kPack == 0;
}

// For each step of a narrow group of c channels, the words (kPack channels) of a pixel that the lanes multiply.
template <typename V>
struct Words {
  int32_t at[V::kLanes][V::kLanes];
  Words(int c, int steps) {
    for (int i = 0; i < steps; ++i)
      for (int l = 0; l < V::kLanes; ++l) at[i][l] = l / c * steps + i;
  }
};

// MR pixels by one register of output channels of narrow groups. A run has t.runs.steps steps for each of kTaps taps,
// one output pixel apart, which share what is permuted: input pixel q is tap 0 of output q, tap 1 of output q - 1, ...
// Weights: [run][tap][step][kLanes][kPack]. One running sum: of at most 64 taps of 8 channels.
template <typename A, int MR, int kTaps>
void run_narrow_tile(const Tile& t, const Words<typename A::V>& words, const typename A::Operand* x,
                     const typename A::Operand* w, const typename A::Elem* residual, typename A::Elem* out) {
  using V = typename A::V;
  using Reg = typename V::Reg;
  constexpr int kWeights = V::kLanes * A::kPack;
  direct::prefetch_epilogue(t, residual, out, MR, V::kLanes);
  Reg acc[MR][1];
#pragma GCC unroll 14
  for (int m = 0; m < MR; ++m) acc[m][0] = V::zero();
  for (int run = 0; run < t.runs.count; ++run, w += kTaps * t.runs.steps * kWeights) {
    const typename A::Operand* p = x + t.runs.offset[run];
    for (int i = 0; i < t.runs.steps; ++i) {
      const typename V::Index word = V::load_index(words.at[i]);
      Reg wv[kTaps];
#pragma GCC unroll 3
      for (int tap = 0; tap < kTaps; ++tap) wv[tap] = A::weights(w + (tap * t.runs.steps + i) * kWeights);
#pragma GCC unroll 16
      for (int q = 0; q < MR + kTaps - 1; ++q) {
        const Reg xv = V::permute(A::channels(p + q * t.pixels.step), word);
#pragma GCC unroll 3
        for (int tap = 0; tap < kTaps; ++tap)
          if (q >= tap && q - tap < MR) acc[q - tap][0] = A::madd(xv, wv[tap], acc[q - tap][0]);
      }
    }
  }
  direct::finish<A, MR, 1>(t, acc, residual, out);
}

template <typename A>
using NarrowFn = void (*)(const Tile&, const Words<typename A::V>&, const typename A::Operand*,
                          const typename A::Operand*, const typename A::Elem*, typename A::Elem*);

// Instances with 1, 2, ... pixels.
template <typename A, int kTaps, int... I>
NarrowFn<A> narrow_tile(int mr, std::integer_sequence<int, I...>) {
  static constexpr NarrowFn<A> instances[] = {run_narrow_tile<A, I + 1, kTaps>...};
  return instances[mr - 1];
}

// The most pixels of a tile with nv registers of output channels.
template <typename V>
constexpr int widest_tile(int nv) {
  return nv == 1 ? V::kPixelsByOne : direct::widest_tile<V>(nv);
}

template <typename A>
NarrowFn<A> narrow_tile_fn(int mr, bool share) {
  const auto pixels = std::make_integer_sequence<int, A::V::kPixelsByOne>();
  return share ? narrow_tile<A, 3>(mr, pixels) : narrow_tile<A, 1>(mr, pixels);
}

template <typename A>
TileFn<A> wide_tile_fn(int mr, int nv) {
  using V = typename A::V;
  if (nv == 1) return direct::tile_of<A, 1>(mr, std::make_integer_sequence<int, V::kPixelsByOne>());
  if (nv == 2) return direct::tile_of<A, 2>(mr, std::make_integer_sequence<int, V::kPixels>());
  return direct::tile_of<A, V::kManyVectors>(mr, std::make_integer_sequence<int, V::kFewPixels>());
}

}  // namespace
}  // namespace resnet_fused::cpu::simd::grouped
