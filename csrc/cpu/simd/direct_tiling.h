// How the direct convolution is split into tasks, and the layout of a task's input.
#pragma once
#include <cstdint>

#include "cpu/direct.h"
#include "cpu/simd/direct_pack.h"
#include "cpu/simd/direct_tile.h"

namespace resnet_fused::cpu::simd::direct {
namespace {

// Bytes of a task's slab; the weights of a channel block take as many again.
template <typename A>
constexpr int64_t kSlabBytes = A::V::kSlabBytes;

// Pixels per unit of a flattened 1x1.
template <typename A>
constexpr int kFlatUnit = A::V::kPixels;

inline int min(int64_t a, int64_t b) { return static_cast<int>(a < b ? a : b); }

// A strided 1x1 convolution without padding as one of stride 1: its x is a view of the pixels that it reads.
inline DirectConv with_unit_stride(DirectConv q) {
  if (q.r > 1 || q.s > 1 || q.pad_h || q.pad_w) return q;
  q.xh *= q.stride_h, q.xw *= q.stride_w;
  q.h = q.oh, q.w = q.ow;
  q.stride_h = q.stride_w = 1;
  return q;
}

// Whether the pixels of all images can be numbered in one row.
inline bool is_flat(const DirectConv& q, int pack) {
  return q.r == 1 && q.s == 1 && q.stride_h == 1 && q.stride_w == 1 && !q.pad_h && !q.pad_w && !q.pool_r && q.xc == 1 &&
         q.c % pack == 0;
}

inline bool nhwc(const DirectConv& q) { return q.xc == 1 && q.xw == q.c && q.xh == static_cast<int64_t>(q.w) * q.c; }

// Neighbouring pixels a multiple of 4 KiB apart map to the same L1 set and would evict each other at every step.
template <typename A>
bool aliases(const DirectConv& q, int64_t channels) {
  return channels * q.stride_w * sizeof(typename A::Operand) % 4096 == 0;
}

template <typename A>
bool needs_slab(const DirectConv& q) {
  if (is_flat(q, A::kPack) && q.n > 1 && q.xn != int64_t{q.h} * q.w * q.c) return true;
  return kConverts<A> || q.pad_h || q.pad_w || !nhwc(q) || q.c % A::kPack || aliases<A>(q, q.c);
}

// An image, or all of them if they are flat: its rows or pixels, how many of them a unit has, and blocks of channels.
struct Work {
  int64_t rows, rows_of_unit;
  int channel_blocks;
};

// Rows times channel blocks of the thread that has most, where every thread takes as many tasks.
inline int64_t busiest(const DirectTiling& t, int images, const Work& work, int threads) {
  const int64_t tasks = int64_t{images} * t.blocks * t.k_groups, each = (tasks + threads - 1) / threads;
  const auto before = [&](int64_t task) {  // the work of all tasks before this one
    const int64_t block = task % t.blocks, group = task / t.blocks % t.k_groups, image = task / t.blocks / t.k_groups;
    const int64_t channels0 = work.channel_blocks * group / t.k_groups;
    const int64_t channels = work.channel_blocks * (group + 1) / t.k_groups - channels0;
    const int64_t row = t.units * block / t.blocks * work.rows_of_unit;
    return (image * work.channel_blocks + channels0) * work.rows + (row < work.rows ? row : work.rows) * channels;
  };
  int64_t most = 0;
  for (int64_t task = 0; task < tasks; task += each) {
    const int64_t next = task + each < tasks ? task + each : tasks, sum = before(next) - before(task);
    if (sum > most) most = sum;
  }
  return most;
}

// Splits rows or channels further where that relieves the busiest thread by more than a fiftieth. Parts of the channels
// copy the input again, parts of the rows read the weights again.
inline void balance(DirectTiling& t, int images, const Work& work, bool by_channels, int threads) {
  DirectTiling best = t;
  int64_t least = busiest(best, images, work, threads);
  const auto consider = [&](int64_t blocks, int64_t k_groups) {
    if (blocks > t.units || k_groups > work.channel_blocks) return;
    DirectTiling other = t;
    other.blocks = static_cast<int>(blocks), other.k_groups = static_cast<int>(k_groups);
    const int64_t most = busiest(other, images, work, threads);
    if (50 * most < 49 * least) best = other, least = most;
  };
  const int64_t even = round_up(t.blocks, threads);
  for (const int64_t blocks : {even, 2 * even}) consider(blocks, 1);
  if (by_channels)
    for (int k_groups = 2; k_groups < 2 * threads; k_groups *= 2) {
      const int groups = k_groups < threads ? k_groups : threads;
      consider(t.blocks, groups);
      consider(even, groups);
    }
  t = best;
}

// Whether tasks should pack their own weights, in L2, instead of reading a copy after comparing its digest: for one
// image that is so small that comparing takes longer than packing, and of which one task computes all rows. Only the
// weights themselves then come from memory. Long reductions amortise what a task copies. Measured on Zen 4 (an L2 of 1
// MiB) and Sapphire Rapids (2 MiB).
template <typename A>
bool packs(const DirectConv& q) {
  constexpr int64_t kFewPixels = 64, kMostPixels = 256, kSize = sizeof(typename A::Operand);
  const int64_t long_reduction = l2_bytes() < int64_t{2} << 20 ? 1024 : 256;
  bool channels_inner;
  const int64_t reduction = int64_t{q.r} * row_values<A>(q.c, q.s), pixels = int64_t{q.oh} * q.ow;
  const int64_t slab = int64_t{q.h + 2 * q.pad_h} * (q.w + 2 * q.pad_w) * q.c * kSize;
  return q.n == 1 && (pixels <= kFewPixels || (pixels <= kMostPixels && reduction >= long_reduction)) && !q.pool_r &&
         slab <= l2_bytes() / 2 && reduction * q.k * kSize > kSlabBytes<A> && q.c % A::kPack == 0 &&
         is_dense(q.weight_strides, q.c, q.r, q.s, channels_inner) && channels_inner;
}

template <typename A>
DirectTiling tiling(const DirectConv& conv, int threads, bool may_pack) {
  using V = typename A::V;
  const DirectConv q = with_unit_stride(conv);
  constexpr int64_t kSize = sizeof(typename A::Operand), kUnit = kFlatUnit<A>;
  DirectTiling t{};
  t.flat = is_flat(q, A::kPack);
  const bool widens = !t.flat && V::kRowsOfShort == 1 && q.ow <= kShortRow && q.k >= V::kManyVectors * V::kLanes;
  t.vectors = widens ? V::kManyVectors : 2;
  t.units = t.flat ? ceil_div(static_cast<int64_t>(q.n) * q.oh * q.ow, kUnit) : q.pool_r ? q.ph : q.oh;
  // input bytes per unit; plan.cpp (slab_bytes) bounds the slab of the resulting task
  const int64_t row = t.flat ? kUnit * q.c * kSize : q.w * q.c * kSize;
  const int64_t fit =
      row ? t.flat ? kSlabBytes<A> / row : kSlabBytes<A> / row / q.stride_h / (q.pool_r ? q.pool_stride_h : 1) : 0;
  t.blocks = ceil_div(t.units, fit ? fit : 1);
  t.k_groups = 1;
  t.packs = may_pack && packs<A>(q);
  if (t.packs) {
    t.blocks = 1;
    t.k_groups = min(ceil_div(q.k, t.vectors * V::kLanes), threads);
    t.tasks = t.k_groups;
    return t;
  }
  const int images = t.flat ? 1 : q.n;
  const Work work{t.flat ? static_cast<int64_t>(q.n) * q.oh * q.ow : t.units, t.flat ? kUnit : 1,
                  ceil_div(q.k, t.vectors * V::kLanes)};
  if (int64_t{images} * t.blocks < 16 * threads) balance(t, images, work, q.pool_r == 0, threads);
  t.tasks = int64_t{images} * t.blocks * t.k_groups;
  return t;
}

}  // namespace
}  // namespace resnet_fused::cpu::simd::direct
