// What LDTILECFG reads. Static storage and fences are the callers' concern (tile.h).
#pragma once
#include <cstdint>

namespace resnet_fused::cpu::amx {

constexpr int kTiles = 8, kMostRows = 16, kMostRowBytes = 64;

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};  // by tile; kTiles of them exist
  uint8_t rows[16] = {};
};
static_assert(sizeof(Config) == 64);

}  // namespace resnet_fused::cpu::amx
