// AMX's instructions in C++, in place of csrc/cpu/amx/tile.h: for processors without them. Aborts where a processor
// would raise an exception: tiles without a configuration, or of shapes that do not match.
//
// TDPBF16PS as in Intel's Software Developer's Manual, volume 2: even and odd products are summed apart, each by a
// fused multiply-add, rounded to nearest even; subnormal operands and results are zeros.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/amx/config.h"

namespace resnet_fused::cpu::amx {
namespace {

struct Tile {
  uint8_t bytes[kMostRows][kMostRowBytes];
};

struct State {
  bool configured = false;
  Config config;
  Tile tiles[kTiles];
};

inline State& state() {
  static thread_local State s;
  return s;
}

inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "AMX would raise an exception: %s\n", what);
  std::abort();
}

template <int T>
Tile& tile() {
  expect(state().configured, "no tile configuration");
  return state().tiles[T];
}

inline bool request_permission() { return true; }

inline void load_config(const Config& config) {
  expect(config.palette == 1 && config.start_row == 0, "the palette is not 1, or the start row not 0");
  for (int i = 0; i < 16; ++i) {
    expect(config.rows[i] <= kMostRows && config.row_bytes[i] <= kMostRowBytes, "a tile of more than 16 x 64 bytes");
    expect(!config.rows[i] == !config.row_bytes[i], "a tile with either no rows or no columns");
    expect(i < kTiles || !config.rows[i], "more than 8 tiles");
  }
  for (const uint8_t byte : config.reserved) expect(byte == 0, "reserved bytes of the configuration are not zero");
  state() = {};
  state().configured = true;
  state().config = config;
}

inline void release() { state().configured = false; }

template <int T>
void zero() {
  tile<T>() = {};
}

template <int T>
void load(const void* from, int64_t step) {
  Tile& t = tile<T>();
  t = {};
  for (int row = 0; row < state().config.rows[T]; ++row)
    std::memcpy(t.bytes[row], static_cast<const uint8_t*>(from) + row * step, state().config.row_bytes[T]);
}

template <int T>
void store(void* to, int64_t step) {
  const Tile& t = tile<T>();
  for (int row = 0; row < state().config.rows[T]; ++row)
    std::memcpy(static_cast<uint8_t*>(to) + row * step, t.bytes[row], state().config.row_bytes[T]);
}

inline float normal(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v; }

inline float widened(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float v;
  std::memcpy(&v, &wide, 4);
  return normal(v);
}

template <int C, int A, int B>
void multiply() {
  const Config& config = state().config;
  Tile &c = tile<C>(), &a = tile<A>(), &b = tile<B>();
  const int columns = config.row_bytes[C] / 4, pairs = config.row_bytes[A] / 4;
  expect(C != A && C != B && A != B, "one tile is two operands");
  expect(config.rows[C] == config.rows[A], "C and A have different numbers of rows");
  expect(config.row_bytes[C] == config.row_bytes[B], "C and B have different numbers of columns");
  expect(config.rows[B] == pairs, "A's columns are not B's rows");
  for (int m = 0; m < config.rows[C]; ++m) {
    uint16_t left[2 * kMostRows];
    std::memcpy(left, a.bytes[m], sizeof left);
    float even[kMostRows] = {}, odd[kMostRows] = {}, sums[kMostRows];
    for (int k = 0; k < pairs; ++k) {
      uint16_t right[2 * kMostRows];
      std::memcpy(right, b.bytes[k], sizeof right);
      const float left0 = widened(left[2 * k]), left1 = widened(left[2 * k + 1]);
      for (int n = 0; n < columns; ++n) {
        even[n] = normal(std::fma(left0, widened(right[2 * n]), even[n]));
        odd[n] = normal(std::fma(left1, widened(right[2 * n + 1]), odd[n]));
      }
    }
    std::memcpy(sums, c.bytes[m], sizeof sums);
    for (int n = 0; n < columns; ++n) sums[n] = normal(normal(sums[n]) + normal(even[n] + odd[n]));
    std::memcpy(c.bytes[m], sums, sizeof sums);
  }
}

}  // namespace
}  // namespace resnet_fused::cpu::amx
