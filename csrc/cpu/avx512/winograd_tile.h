// The 4x4 pixels that a tile of Winograd's F(2x2, 3x3) reads, and their transform. Everything here is static: files
// below avx512/ must not leave AVX-512 code in symbols that the linker could share with the rest of the library.
#pragma once
#include <immintrin.h>

#include <cstdint>

#include "cpu/direct.h"

namespace resnet_fused::cpu::avx512 {
namespace {

constexpr int kPoints = 16;  // 4x4 transformed values a tile

struct Quad {
  __m512 v[4];
};

// B^T d, for one row or column of four
inline Quad transform_input(__m512 d0, __m512 d1, __m512 d2, __m512 d3) {
  return {{_mm512_sub_ps(d0, d2), _mm512_add_ps(d1, d2), _mm512_sub_ps(d2, d1), _mm512_sub_ps(d1, d3)}};
}

// Where a tile's upper left output is.
struct Place {
  int64_t image;
  int y, x;
};

template <typename Conv>
inline Place place_of(const Conv& q, int64_t tile) {
  return {tile / q.tiles_w / q.tiles_h, static_cast<int>(2 * (tile / q.tiles_w % q.tiles_h)),
          static_cast<int>(2 * (tile % q.tiles_w))};
}

// A tile's pixels; a null pointer is one of the padding.
template <typename Conv>
inline void pixels_of(const Conv& q, int64_t tile, const float* (&p)[4][4]) {
  const Place at = place_of(q, tile);
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j) {
      const int h = at.y - q.pad_h + i, w = at.x - q.pad_w + j;
      p[i][j] = h >= 0 && h < q.h && w >= 0 && w < q.w ? q.x + ((at.image * q.h + h) * q.w + w) * q.c : nullptr;
    }
}

// store(point, B^T d B at that point) of 16 channels, whose pixels load(i, j) gives.
template <typename Load, typename Store>
inline __attribute__((always_inline)) void transform_tile(const Load& load, const Store& store) {
  Quad rows[4];  // d B, one row of the tile each
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) rows[i] = transform_input(load(i, 0), load(i, 1), load(i, 2), load(i, 3));
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const Quad column = transform_input(rows[0].v[j], rows[1].v[j], rows[2].v[j], rows[3].v[j]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store(i * 4 + j, column.v[i]);
  }
}

}  // namespace
}  // namespace resnet_fused::cpu::avx512
