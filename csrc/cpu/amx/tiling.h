// How a convolution is split into tasks for AMX: parts of all output rows, or of the pixels of a flattened 1x1, by
// parts of the output channels.
#pragma once
#include "cpu/amx/input.h"

namespace resnet_fused::cpu::amx {
namespace {

constexpr int kUnit = 2 * kGroup;  // pixels of a flattened 1x1

inline int64_t rows_of(const DirectConv& q) { return q.pool_r ? q.ph : q.oh; }

// Input rows under `rows` output rows, or rows of the pool.
inline int64_t input_rows(const DirectConv& q, int64_t rows) {
  if (q.pool_r) rows = (rows - 1) * q.pool_stride_h + q.pool_r;
  return (rows - 1) * q.stride_h + int64_t{q.r - 1} * q.dil_h + 1;
}

// Cycles of the thread that has most, estimated: multiplications, and bytes from beyond L2. Constants of a Sapphire
// Rapids.
inline double cycles(const DirectConv& q, const DirectTiling& t, int threads) {
  constexpr double kBytesPerCycle = 8, kCyclesPerStep = 64;
  const int64_t tasks = int64_t{t.blocks} * t.k_groups, rounds = (tasks + threads - 1) / threads;
  const int64_t units = ceil_div(t.units, t.blocks);
  const double pixels = t.flat ? static_cast<double>(units) * kUnit : static_cast<double>(units) * q.ow;
  const double blocks = ceil_div(ceil_div(q.k, kBlock), t.k_groups);
  const double steps = static_cast<double>(q.r) * simd::direct::row_values<Bf16>(q.c, q.s) / Bf16::kPack;
  const double weights = blocks * kBlock * steps * Bf16::kPack * 2;
  const double in = static_cast<double>(units) / static_cast<double>(t.units) * q.n * q.h * q.w * q.c * 2;
  const double tiles = t.flat ? static_cast<double>(units) : pixels / kUnit + 1;
  return static_cast<double>(rounds) * (tiles * blocks * steps * kCyclesPerStep + (weights + in) / kBytesPerCycle);
}

// Whether tasks should pack their own weights, in L2, instead of reading a copy after comparing its digest: for one
// image, unless several tasks would pack the same large weight. A digest costs a parallel loop, and reads the weight,
// too.
inline bool packs(const DirectConv& q, const DirectTiling& t) {
  constexpr int64_t kSmall = 512 << 10;  // bytes
  const int64_t bytes = int64_t{q.k} * q.r * simd::direct::row_values<Bf16>(q.c, q.s) * int64_t{sizeof(uint16_t)};
  bool channels_inner;
  return q.n == 1 && !q.pool_r && q.c % Bf16::kPack == 0 && (t.blocks == 1 || bytes <= kSmall) &&
         simd::direct::is_dense(q.weight_strides, q.c, q.r, q.s, channels_inner) && channels_inner;
}

inline DirectTiling tiling(const DirectConv& q, int threads, bool may_pack) {
  constexpr int64_t kSize = sizeof(uint16_t);
  DirectTiling t{};
  t.vectors = 2;
  t.flat = q.r == 1 && q.s == 1 && q.stride_h == 1 && q.stride_w == 1 && !q.pool_r && simd::direct::nhwc(q) &&
           !q.pad_h && !q.pad_w && q.c % Bf16::kPack == 0 && q.xn == static_cast<int64_t>(q.h) * q.xh;
  t.k_groups = 1;
  const int channel_blocks = ceil_div(q.k, kBlock);
  t.units = t.flat ? ceil_div(int64_t{q.n} * q.oh * q.ow, kUnit) : q.n * rows_of(q);
  // Rows whose input and output stay in L2.
  int64_t fit = t.units;
  if (!t.flat) {
    const int64_t in = (input_rows(q, 2) - input_rows(q, 1)) * q.w * q.c * kSize;
    const int64_t out = int64_t{q.pool_r ? q.pool_stride_h : 1} * q.ow * q.k * kSize;
    fit = Bf16::V::kSlabBytes / (in + (q.pool_r ? out : 0) + 1);
    if (!q.pool_r && fit > q.oh) {  // whole images, with their padding
      const int64_t images = Bf16::V::kSlabBytes / Layout(q, /*finite=*/true).bytes(1, q.oh);
      fit = q.oh * (images > 1 ? images : 1);
    }
  }
  const int64_t least = fit > 0 ? ceil_div(t.units, fit) : t.units;
  double best = 0;
  DirectTiling chosen = t;
  const auto consider = [&](int64_t blocks, int k_groups) {
    if (blocks > t.units) blocks = t.units;
    if (blocks < 1) return;
    DirectTiling other = t;
    other.blocks = static_cast<int>(blocks), other.k_groups = k_groups;
    const double cost = cycles(q, other, threads);
    if (best == 0 || cost < best) best = cost, chosen = other;
  };
  const int64_t even = (least + threads - 1) / threads * threads;
  consider(even, 1);
  if (threads > 1 && !q.pool_r) {
    const int k_groups = min(threads, channel_blocks);
    consider(least, k_groups);
    const int64_t more = ceil_div(threads, k_groups);  // for more threads than channel blocks
    consider(least > more ? least : more, k_groups);
  }
  chosen.tasks = int64_t{chosen.blocks} * chosen.k_groups;
  chosen.packs = may_pack && packs(q, chosen);
  return chosen;
}

}  // namespace
}  // namespace resnet_fused::cpu::amx
