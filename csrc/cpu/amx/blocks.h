// Blocks of up to 2 x 16 output pixels by 2 x 16 output channels in tile registers: 16 pixels by 32 input channels (A),
// 16 pairs of input channels by 16 output channels (B), 16 pixels by 16 output channels (C, float32).
//
// Scale, shift, residual and ReLU of a block are applied while the next block multiplies: its sums wait in L1. Weights
// may be packed while a block multiplies them.
#pragma once
#include "cpu/amx/element.h"

namespace resnet_fused::cpu::amx {
namespace {

using simd::Runs;

// What a block multiplies: two groups of 16 pixels, and its packed weights.
struct Operands {
  const uint16_t *first, *second;  // null: one group
  int64_t step;                    // bytes from a pixel to the next
  const uint16_t* weights;
  int vectors;  // of 16 output channels, 1 or 2
};

// Packs the weights of a channel block step by step: those of a tile per vector. C is a multiple of a step, and a
// filter's channels are adjacent.
class Packer {
 public:
  // The filters from k on, of which `left` exist.
  Packer(const DirectConv& q, int k, int left, uint16_t* to) : to_(to), vectors_(left > kLanes ? 2 : 1) {
    for (int v = 0; v < vectors_; ++v) {
      const int exist = left - v * kLanes;
      filters_[v] = {static_cast<const uint16_t*>(q.weight) + (k + v * kLanes) * q.weight_strides[0],
                     q.weight_strides[0],
                     exist < kLanes ? exist : kLanes,
                     q.c,
                     q.r,
                     q.s};
    }
  }
  inline __attribute__((always_inline)) void pack(int64_t step) {
    for (int v = 0; v < vectors_; ++v)
      simd::direct::pack_some_pairs<Bf16>(filters_[v], {to_, vectors_, v}, step * kLanes, kLanes, largest_);
  }
  bool finite() const { return Bf16::pairs_are_finite(largest_); }

 private:
  simd::direct::Filters<Bf16> filters_[2];
  uint16_t* to_;
  int vectors_;
  Bf16::V::Reg largest_ = Bf16::V::zero();
};

// Where a block's results go.
struct Results {
  const int32_t *first, *second;  // of each pixel of a group: its number in the output, or -1 if it has none
  const float *scale, *shift;
  const uint16_t* residual;  // null, or of the shape of out
  uint16_t* out;             // the block's first channel of pixel 0
  int64_t channels;          // of a pixel of out
  int left;                  // channels of the block that exist
  bool relu, pooled;         // pooled: -0 becomes 0
};

class Blocks {
 public:
  // Multiplies a block, and finishes the one before. With a packer, o.weights are where it packs them.
  void run(const Operands& o, const Runs& runs, const Results& to, Packer* packer = nullptr) {
    if (packer)
      multiply<true>(o, runs, packer);
    else
      multiply<false>(o, runs, packer);
    finish();
    float (*sums)[kGroup][kLanes] = sums_[current_];
    store<0>(sums[0], kMostRowBytes);
    store<1>(sums[1], kMostRowBytes);
    store<2>(sums[2], kMostRowBytes);
    store<3>(sums[3], kMostRowBytes);
    waiting_ = to;
    current_ ^= 1;
    row_ = 0, rows_ = o.second ? 2 * kGroup : kGroup;
  }

  // Finishes the last block.
  void finish() { finish_rows(rows_); }

 private:
  template <bool kPacks>
  void multiply(const Operands& o, const Runs& runs, Packer* packer) {
    if (o.second)
      o.vectors == 2 ? multiply<true, 2, kPacks>(o, runs, packer) : multiply<true, 1, kPacks>(o, runs, packer);
    else
      o.vectors == 2 ? multiply<false, 2, kPacks>(o, runs, packer) : multiply<false, 1, kPacks>(o, runs, packer);
  }

  template <bool kBoth, int NV, bool kPacks>
  void multiply(const Operands& o, const Runs& runs, Packer* packer) {
    constexpr int kLead = 2;  // steps: loading a tile stalls on stores that have only just been made
    const int64_t steps = int64_t{runs.count} * runs.steps;
    int64_t packed = 0;
    if constexpr (kPacks)
      while (packed < kLead && packed < steps) packer->pack(packed++);
    const int rows_per_step = static_cast<int>((rows_ + steps - 1) / steps);
    const char* next = runs.next;
    const uint16_t* w = o.weights;
    zero<0>(), zero<1>(), zero<2>(), zero<3>();
    for (int i = 0; i < runs.count; ++i) {
      const uint16_t *a = o.first + runs.offset[i], *b = kBoth ? o.second + runs.offset[i] : a;
      for (int step = 0; step < runs.steps; ++step, a += Bf16::kPack, b += Bf16::kPack, w += NV * kStep) {
        if constexpr (kPacks)
          if (packed < steps) packer->pack(packed++);
        load<4>(a, o.step);
        load<6>(w, kMostRowBytes);
        if constexpr (NV == 2) load<7>(w + kStep, kMostRowBytes);
        if constexpr (kBoth) load<5>(b, o.step);
        amx::multiply<0, 4, 6>();
        if constexpr (NV == 2) amx::multiply<1, 4, 7>();
        if constexpr (kBoth) amx::multiply<2, 5, 6>();
        if constexpr (kBoth && NV == 2) amx::multiply<3, 5, 7>();
        for (int64_t at = 0; at < runs.next_step; at += simd::direct::kCacheLine) __builtin_prefetch(next + at, 0, 2);
        next += runs.next_step;
        finish_rows(rows_per_step);
      }
    }
  }

  // Finishes up to `count` more pixels of the block that waits.
  inline __attribute__((always_inline)) void finish_rows(int count) {
    if (row_ == rows_) return;
    const int last = row_ + count < rows_ ? row_ + count : rows_;
    if (waiting_.residual)
      finish_rows<true>(row_, last);
    else
      finish_rows<false>(row_, last);
    row_ = last;
  }

  template <bool kResidual>
  inline __attribute__((always_inline)) void finish_rows(int row, const int last) {
    using V = Bf16::V;
    const Results& to = waiting_;
    const Words::Mask exist = Words::first(to.left);
    const V::Reg scale0 = V::load(to.scale), scale1 = V::load(to.scale + kLanes);
    const V::Reg shift0 = V::load(to.shift), shift1 = V::load(to.shift + kLanes);
    const V::Reg floor = to.relu ? V::zero() : V::set1(-__builtin_inff());
    const int64_t channels = to.channels;
    uint16_t* const out = to.out;
    const uint16_t* const residual = to.residual;
    const float (*all)[kGroup][kLanes] = sums_[current_ ^ 1];
    for (; row < last; ++row) {
      const int group = row / kGroup, m = row % kGroup;
      const int64_t pixel = (group ? to.second : to.first)[m];
      if (pixel < 0) continue;
      const float (*sums)[kGroup][kLanes] = all + 2 * group;
      V::Reg low = V::fmadd(V::load(sums[0][m]), scale0, shift0), high = V::fmadd(V::load(sums[1][m]), scale1, shift1);
      if constexpr (kResidual) {
        const Words::Reg r = Words::load(residual + pixel * channels, exist);
        low += Words::low(r), high += Words::high(r);
      }
      low = V::max(floor, low), high = V::max(floor, high);
      if (to.pooled) low += V::zero(), high += V::zero();
      Words::store(out + pixel * channels, Words::narrow(low, high), exist);
    }
  }

  UsesTiles tiles_;
  alignas(64) float sums_[2][4][kGroup][kLanes];  // [current or waiting][group of pixels * 2 + vector]
  Results waiting_;
  int current_ = 0;         // sums of the next block
  int row_ = 0, rows_ = 0;  // of the waiting block: the next pixel to finish, and how many it has
};

}  // namespace
}  // namespace resnet_fused::cpu::amx
