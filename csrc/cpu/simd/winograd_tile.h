// The input pixels of a Winograd tile, and their transform.
#pragma once
#include <cstdint>

#include "cpu/simd/winograd_transforms.h"

namespace resnet_fused::cpu::simd {
namespace {

template <typename F>
constexpr int kPoints = F::kTile * F::kTile;  // transformed values per tile

// Position of a tile's upper left output.
struct Place {
  int64_t image;
  int y, x;
};

template <typename F, typename Conv>
inline void count_tiles(Conv& q) {
  q.tiles_h = (q.oh + F::kOut - 1) / F::kOut;
  q.tiles_w = (q.ow + F::kOut - 1) / F::kOut;
  q.tiles = static_cast<int64_t>(q.n) * q.tiles_h * q.tiles_w;
}

template <typename F, typename Conv>
inline Place place_of(const Conv& q, int64_t tile) {
  return {tile / q.tiles_w / q.tiles_h, static_cast<int>(F::kOut * (tile / q.tiles_w % q.tiles_h)),
          static_cast<int>(F::kOut * (tile % q.tiles_w))};
}

// Pointers to a tile's pixels; null in the padding.
template <typename F, typename Elem, typename Conv>
inline void pixels_of(const Conv& q, int64_t tile, const Elem* (&p)[F::kTile][F::kTile]) {
  const Place at = place_of<F>(q, tile);
  for (int i = 0; i < F::kTile; ++i)
    for (int j = 0; j < F::kTile; ++j) {
      const int h = at.y - q.pad_h + i, w = at.x - q.pad_w + j;
      p[i][j] = h >= 0 && h < q.h && w >= 0 && w < q.w
                    ? static_cast<const Elem*>(q.x) + ((at.image * q.h + h) * q.w + w) * q.c
                    : nullptr;
    }
}

// Calls store(point, value) with B^T d B for a register of channels; load(i, j) gives their pixels.
template <typename F, typename Load, typename Store>
inline __attribute__((always_inline)) void transform_tile(const Load& load, const Store& store) {
  using Reg = typename F::Reg;
  Reg half[F::kTile][F::kTile];  // d B, one column at a time
#pragma GCC unroll 6
  for (int i = 0; i < F::kTile; ++i) {
    Reg d[F::kTile], v[F::kTile];
#pragma GCC unroll 6
    for (int j = 0; j < F::kTile; ++j) d[j] = load(i, j);
    F::input(d, v);
#pragma GCC unroll 6
    for (int j = 0; j < F::kTile; ++j) half[j][i] = v[j];
  }
#pragma GCC unroll 6
  for (int j = 0; j < F::kTile; ++j) {
    Reg v[F::kTile];
    F::input(half[j], v);
#pragma GCC unroll 6
    for (int i = 0; i < F::kTile; ++i) store(i * F::kTile + j, v[i]);
  }
}

}  // namespace
}  // namespace resnet_fused::cpu::simd
