// The element type of AMX's convolutions, for the copies and packing of simd/, and the configuration of their tiles.
#pragma once
#include "cpu/amx/config.h"
#include "cpu/amx/tile.h"
#include "cpu/avx512/vector.h"
#include "cpu/simd/direct_kernel.h"

namespace resnet_fused::cpu::amx {
namespace {

struct Bf16 : avx512::Bf16 {
  struct V : avx512::Vector {
    static constexpr int kManyVectors = 2;
    static constexpr int kLinesAhead = 0;  // of each filter that is packed: Intel's own prefetchers do better
    static constexpr int64_t kSlabBytes = 512 << 10;  // a quarter of a 2 MiB L2
  };
  static constexpr int kPack = 32;  // channels in a row of A
};

using avx512::Words;

constexpr int kGroup = kMostRows;            // pixels in a tile register
constexpr int kLanes = Bf16::V::kLanes;      // output channels in a tile register
constexpr int kBlock = 2 * kLanes;           // output channels of a channel block
constexpr int kStep = kLanes * Bf16::kPack;  // operands of a B tile

// While it lives, the thread has 8 whole tiles.
class UsesTiles {
 public:
  UsesTiles() {
    static const Config config = [] {
      Config c;
      for (int tile = 0; tile < kTiles; ++tile) c.rows[tile] = kMostRows, c.row_bytes[tile] = kMostRowBytes;
      return c;
    }();
    load_config(config);
  }
  ~UsesTiles() { release(); }
  UsesTiles(const UsesTiles&) = delete;
  UsesTiles& operator=(const UsesTiles&) = delete;
};

}  // namespace
}  // namespace resnet_fused::cpu::amx
