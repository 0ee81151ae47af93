#include "cpu/amx/available.h"

#include "cpu/amx/tile.h"

namespace resnet_fused::cpu::amx {

namespace {

constexpr int kRows = 5, kPairs = 16, kColumns = 16;

// Small whole numbers, whose bfloat16 and whose sums are exact in any order.
int a_value(int m, int k) { return (3 * m + k) % 7 - 3; }
int b_value(int k, int n) { return (k + 2 * n) % 5 - 2; }

uint16_t bf16(int v) {
  const float f = static_cast<float>(v);
  uint32_t bits;
  __builtin_memcpy(&bits, &f, 4);
  return static_cast<uint16_t>(bits >> 16);
}

bool multiplies() {
  static Config config;
  static uint16_t a[kRows][2 * kPairs], b[kPairs][2 * kColumns];
  static float c[kRows + 1][kColumns];  // a row more than the tile has
  for (int tile = 0; tile < kTiles; ++tile) config.row_bytes[tile] = kMostRowBytes, config.rows[tile] = kMostRows;
  config.rows[0] = config.rows[4] = kRows;
  for (int k = 0; k < 2 * kPairs; ++k) {
    for (int m = 0; m < kRows; ++m) a[m][k] = bf16(a_value(m, k));
    for (int n = 0; n < kColumns; ++n) b[k / 2][2 * n + k % 2] = bf16(b_value(k, n));
  }
  for (int n = 0; n < kColumns; ++n) c[kRows][n] = 1;
  load_config(config);
  zero<0>();
  load<4>(a, sizeof a[0]);
  load<6>(b, sizeof b[0]);
  multiply<0, 4, 6>();
  store<0>(c, sizeof c[0]);
  release();
  for (int n = 0; n < kColumns; ++n) {
    if (c[kRows][n] != 1) return false;
    for (int m = 0; m < kRows; ++m) {
      int sum = 0;
      for (int k = 0; k < 2 * kPairs; ++k) sum += a_value(m, k) * b_value(k, n);
      if (c[m][n] != static_cast<float>(sum)) return false;
    }
  }
  return true;
}

}  // namespace

bool available() {
  static const bool yes = request_permission() && multiplies();
  return yes;
}

}  // namespace resnet_fused::cpu::amx
