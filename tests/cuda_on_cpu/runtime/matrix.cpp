// ldmatrix and mma.sync. Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16" and "... m16n8k8".
#include <cstring>

#include "runtime/block.h"
#include "runtime/clones.h"
#include "runtime/instructions.h"
#include "runtime/report.h"

namespace cuda_on_cpu {

namespace {

// ---- ldmatrix

struct Rows {
  uint32_t* d;
  const unsigned char* row;  // null if its address is invalid
};

template <bool kTransposed>
void load_matrices(Warp& warp, uint32_t, Place) {
  for (uint32_t i = 0; i < 4; ++i) {
    uint16_t m[8][8];
    for (uint32_t j = 0; j < 8; ++j) {
      const unsigned char* row = warp.argument<Rows>(8 * i + j).row;
      if (row)
        std::memcpy(m[j], row, 16);
      else
        std::memset(m[j], 0xff, 16);
    }
    for (uint32_t lane = 0; lane < 32; ++lane) {
      const uint32_t g = lane / 4, t = lane % 4 * 2;
      const uint16_t lo = kTransposed ? m[t][g] : m[g][t], hi = kTransposed ? m[t + 1][g] : m[g][t + 1];
      warp.argument<Rows>(lane).d[i] = lo | static_cast<uint32_t>(hi) << 16;
    }
  }
}

const Collective kLdmatrix{"ldmatrix", &load_matrices<false>};
const Collective kLdmatrixTransposed{"ldmatrix.trans", &load_matrices<true>};

// ---- mma

struct Operands {
  float* d;
  const uint32_t *a, *b;
};

inline float float_of(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

// Converts the lower and upper half of a word to float.
struct Half {
  static float widen(uint32_t h) {
    const uint32_t sign = (h & 0x8000) << 16, rest = (h & 0x7fff) << 13;
    const float scaled = float_of(rest) * 0x1p112f;  // rebiases the exponent; exact, also for subnormals
    uint32_t bits;
    std::memcpy(&bits, &scaled, 4);
    bits = rest >= 0x0f800000 ? rest | 0x7f800000 : bits;  // infinity and NaN
    return float_of(bits | sign);
  }
  static float lo(uint32_t word) { return widen(word & 0xffff); }
  static float hi(uint32_t word) { return widen(word >> 16); }
};

struct BFloat {
  static float lo(uint32_t word) { return float_of(word << 16); }
  static float hi(uint32_t word) { return float_of(word & 0xffff0000u); }
};

// 16x16 times 16x8 in 16-bit types, two neighbours along K per word; or 16x8 times 8x8 in tf32.
struct Tile {
  uint32_t a[16][8];  // row, word along K
  uint32_t b[8][8];   // word along K, column
  float d[16][8];
};

// The fragments of m16n8k8 (tf32) and m16n8k16 (16-bit) place their words alike.
void gather(Warp& warp, Tile& tile) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const auto& o = warp.argument<Operands>(lane);
    const uint32_t g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) tile.a[g + i % 2 * 8][t + i / 2 * 4] = o.a[i];
    for (int i = 0; i < 2; ++i) tile.b[t + i * 4][g] = o.b[i];
    for (int i = 0; i < 4; ++i) tile.d[g + i / 2 * 8][t * 2 + i % 2] = o.d[i];
  }
}

void scatter(Warp& warp, const Tile& tile) {
  for (uint32_t lane = 0; lane < 32; ++lane) {
    float* d = warp.argument<Operands>(lane).d;
    for (uint32_t i = 0; i < 4; ++i) d[i] = tile.d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
  }
}

// Adds in order of K; a GPU's order is unspecified.
template <typename Element>
inline __attribute__((always_inline)) void multiply16(Tile& tile) {
  float b_lo[8][8], b_hi[8][8], a_lo[16][8], a_hi[16][8];
  for (int k = 0; k < 8; ++k)
    for (int j = 0; j < 8; ++j) b_lo[k][j] = Element::lo(tile.b[k][j]), b_hi[k][j] = Element::hi(tile.b[k][j]);
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 8; ++k) a_lo[i][k] = Element::lo(tile.a[i][k]), a_hi[i][k] = Element::hi(tile.a[i][k]);
  for (int i = 0; i < 16; ++i) {
    float sum[8];
    std::memcpy(sum, tile.d[i], sizeof sum);
    for (int k = 0; k < 8; ++k) {
      for (int j = 0; j < 8; ++j) sum[j] += a_lo[i][k] * b_lo[k][j];
      for (int j = 0; j < 8; ++j) sum[j] += a_hi[i][k] * b_hi[k][j];
    }
    std::memcpy(tile.d[i], sum, sizeof sum);
  }
}

CUDA_ON_CPU_CLONES void multiply_f16(Tile& tile) { multiply16<Half>(tile); }
CUDA_ON_CPU_CLONES void multiply_bf16(Tile& tile) { multiply16<BFloat>(tile); }

constexpr uint32_t kTf32Mask = 0xffffe000;  // the 19 bits that the tensor core reads

CUDA_ON_CPU_CLONES void multiply_tf32(Tile& tile) {
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 8; ++k)
      for (int j = 0; j < 8; ++j)
        tile.d[i][j] += float_of(tile.a[i][k] & kTf32Mask) * float_of(tile.b[k][j] & kTf32Mask);
}

template <void (*kMultiply)(Tile&)>
void multiply(Warp& warp, uint32_t, Place) {
  Tile tile;
  gather(warp, tile);
  kMultiply(tile);
  scatter(warp, tile);
}

const Collective kMmaF16{"mma.m16n8k16.f16", &multiply<multiply_f16>};
const Collective kMmaBf16{"mma.m16n8k16.bf16", &multiply<multiply_bf16>};
const Collective kMmaTf32{"mma.m16n8k8.tf32", &multiply<multiply_tf32>};

void check_rounded(const char* operand, const uint32_t* words, int count, Place place) {
  for (int i = 0; i < count; ++i)
    if (words[i] & ~kTf32Mask)
      return report("tf32 operand not rounded", {place}, operand, "[", i, "] = ", float_of(words[i]));
}

}  // namespace

void ldmatrix_x4(uint32_t* d, uint32_t row, bool transposed) {
  const Place place = CUDA_ON_CPU_CALLER;
  Thread& me = this_thread();
  SharedMemory& shared = me.block->shared;
  Rows rows{d, nullptr};
  if (shared.check("ldmatrix", row, 16, 16, place)) {
    shared.read(row, 16, actor_of(me), place);
    rows.row = shared.at(row);
  }
  meet(transposed ? kLdmatrixTransposed : kLdmatrix, kAllLanes, &rows, place);
}

void mma_f16(float* d, const uint32_t* a, const uint32_t* b) {
  Operands o{d, a, b};
  meet(kMmaF16, kAllLanes, &o, CUDA_ON_CPU_CALLER);
}

void mma_bf16(float* d, const uint32_t* a, const uint32_t* b) {
  Operands o{d, a, b};
  meet(kMmaBf16, kAllLanes, &o, CUDA_ON_CPU_CALLER);
}

void mma_tf32(float* d, const uint32_t* a, const uint32_t* b) {
  const Place place = CUDA_ON_CPU_CALLER;
  check_rounded("a", a, 4, place);
  check_rounded("b", b, 2, place);
  Operands o{d, a, b};
  meet(kMmaTf32, kAllLanes, &o, place);
}

}  // namespace cuda_on_cpu
