// The direct convolution's tile in AMX: up to 2 x 16 output pixels by 2 x 16 output channels. Each tile register holds
// 16 pixels by 32 input channels (A), 16 pairs of input channels by 16 output channels (B), or 16 pixels by 16 output
// channels (C, float32). A long row is split into tiles of nearly equal width; of rows of at most 16 pixels, one tile
// covers two, so that each B is multiplied twice.
#pragma once
#include "cpu/amx/tile.h"
#include "cpu/avx512/vector.h"
#include "cpu/simd/direct_tile.h"

namespace resnet_fused::cpu::amx {
namespace {

struct Vector : avx512::Vector {
  static constexpr int kPixels = 2 * kMostRows;
  static constexpr int kFewPixels = kPixels;  // short rows need no more channels
  static constexpr int kManyVectors = 2;
  static constexpr int kRows = 2;
  static constexpr int64_t kSlabBytes = 512 << 10;  // a quarter of a 2 MiB L2
};

struct Bf16 : avx512::Bf16 {
  using V = Vector;
  static constexpr int kPack = 32;
};

// The shapes of the tile registers in this thread; constructed for a range of tasks. Other libraries' tile code may run
// between two of them.
class Session {
 public:
  Session() { loaded_[0] = loaded_[1] = -1; }
  ~Session() {
    if (loaded_[0] >= 0) release();
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // C 0 and 1, and A 4, get pixels[0] rows, C 2 and 3, and A 5, pixels[1]; B are 6 and 7.
  static void configure(const int (&pixels)[2]) {
    if (pixels[0] == loaded_[0] && pixels[1] == loaded_[1]) return;
    loaded_[0] = pixels[0], loaded_[1] = pixels[1];
    Config config;
    for (int tile = 0; tile < kTiles; ++tile) {
      const int group = tile < 4 ? tile / 2 : tile - 4;
      const int rows = tile < 6 ? pixels[group] : kMostRows;
      config.rows[tile] = static_cast<uint8_t>(rows > 0 ? rows : 1);
      config.row_bytes[tile] = kMostRowBytes;
    }
    load_config(config);
  }

 private:
  static thread_local int loaded_[2];
};

thread_local int Session::loaded_[2] = {-1, -1};

// Advances a pointer over what the caller reads next, `count` bytes per step.
inline void prefetch(const char*& next, int64_t count) {
  for (int64_t at = 0; at < count; at += simd::direct::kCacheLine) __builtin_prefetch(next + at, 0, 2);
  next += count;
}

template <bool kBoth, int NV>
void accumulate(const simd::direct::Tile& t, const uint16_t* x, const uint16_t* w) {
  constexpr int kTile = 2 * kMostRows * kMostRows;  // operands of a B tile
  const int64_t step_bytes = t.pixel_step * static_cast<int64_t>(sizeof(uint16_t));
  const char* next = t.runs.next;
  zero<0>();
  if constexpr (NV == 2) zero<1>();
  if constexpr (kBoth) zero<2>();
  if constexpr (kBoth && NV == 2) zero<3>();
  for (int i = 0; i < t.runs.count; ++i) {
    const uint16_t* p = x + t.runs.offset[i];
    for (int step = 0; step < t.runs.steps; ++step, p += Bf16::kPack, w += NV * kTile) {
      load<6>(w, kMostRowBytes);
      load<4>(p, step_bytes);
      multiply<0, 4, 6>();
      if constexpr (NV == 2) {
        load<7>(w + kTile, kMostRowBytes);
        multiply<1, 4, 7>();
      }
      if constexpr (kBoth) {
        load<5>(p + t.second, step_bytes);
        multiply<2, 5, 6>();
        if constexpr (NV == 2) multiply<3, 5, 7>();
      }
      prefetch(next, t.runs.next_step);
    }
  }
}

template <bool kBoth, int NV>
void run_tile(const simd::direct::Tile& t, const uint16_t* x, const uint16_t* w, const uint16_t* residual,
              uint16_t* out) {
  constexpr int kLanes = Vector::kLanes;
  const int pixels = t.pixels[0] + (kBoth ? t.pixels[1] : 0);
  simd::direct::prefetch_epilogue(t, residual, out, pixels, NV * kLanes);
  Session::configure(t.pixels);
  accumulate<kBoth, NV>(t, x, w);
  alignas(64) float sums[2][2][kMostRows][kLanes];  // [group of pixels][vector]
  store<0>(sums[0][0], kMostRowBytes);
  if constexpr (NV == 2) store<1>(sums[0][1], kMostRowBytes);
  if constexpr (kBoth) store<2>(sums[1][0], kMostRowBytes);
  if constexpr (kBoth && NV == 2) store<3>(sums[1][1], kMostRowBytes);
  for (int v = 0; v < NV; ++v) {
    const auto lanes = Vector::first(t.channels_left - v * kLanes);
    const __m512 scale = Vector::load(t.scale + v * kLanes), shift = Vector::load(t.shift + v * kLanes);
    for (int m = 0; m < pixels; ++m) {
      const int64_t at = static_cast<int64_t>(m) * t.k + v * kLanes;
      const int group = m >= t.pixels[0], row = m - group * t.pixels[0];
      __m512 y = Vector::fmadd(Vector::load(sums[group][v][row]), scale, shift);
      if (residual) y += Bf16::load(residual + at, lanes);
      if (t.relu) y = simd::relu<Vector>(y);
      Bf16::store(out + at, y, lanes);
    }
  }
}

}  // namespace
}  // namespace resnet_fused::cpu::amx

namespace resnet_fused::cpu::simd::direct {
namespace {

template <>
struct TileFns<amx::Bf16> {
  using Session = amx::Session;
  static TileFn<amx::Bf16> of(int /*mr*/, const Tile& t, int nv) {
    if (t.pixels[1]) return nv == 1 ? amx::run_tile<true, 1> : amx::run_tile<true, 2>;
    return nv == 1 ? amx::run_tile<false, 1> : amx::run_tile<false, 2>;
  }
};

}  // namespace
}  // namespace resnet_fused::cpu::simd::direct
