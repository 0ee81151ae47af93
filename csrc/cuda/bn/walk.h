// How a grid covers the activations of a BatchNorm, element by element or to sum them. Pure: no torch, no CUDA.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/dtype.h"

namespace resnet_fused::cuda {

enum class Layout : int32_t { kNHWC, kNCHW };

// A dense tensor of activations.
struct BnShape {
  Dtype dtype = Dtype::kFloat32;
  Layout layout = Layout::kNHWC;
  int32_t batch = 0;     // N
  int32_t channels = 0;  // C
  int32_t area = 0;      // H * W; N * C * H * W < 2^31
};

// Elements an access: 16 bytes wherever every one of them is aligned and stays within one row of channels (NHWC) or one
// plane (NCHW), else one element. `addresses` are those of all tensors, or-ed.
inline int vector_of(const BnShape& s, uintptr_t addresses) {
  const int vector = 16 / size_of(s.dtype);
  const int run = s.layout == Layout::kNHWC ? s.channels : s.area;
  return s.dtype != Dtype::kFloat64 && addresses % 16 == 0 && run % vector == 0 ? vector : 1;
}

// A thread owns one lane, that is the channels of one access (NHWC) or one channel (NCHW), reads their vectors once,
// and walks over items: pixels (NHWC), or the accesses of that channel's planes (NCHW). A block is `slots` items of
// `lanes` adjacent lanes; `groups` blocks side by side cover all lanes, and each group has `splits` blocks which share
// its items.
struct BnWalk {
  uint32_t all_lanes, items;
  uint32_t plane;  // accesses an NCHW plane
  uint32_t lanes, slots, groups, splits;

  uint32_t block() const { return lanes * slots; }
  uint32_t grid() const { return groups * splits; }
};

constexpr uint32_t kBnThreads = 256;    // a block, at most
constexpr uint32_t kBnBlocksPerSm = 2;  // that registers leave room for, at least

// Blocks of `widest` lanes at most, and about `blocks` of them.
inline BnWalk walk_activations(const BnShape& s, int vector, uint32_t widest, uint32_t blocks) {
  const auto ceil_div = [](uint32_t a, uint32_t b) { return (a + b - 1) / b; };
  const bool nhwc = s.layout == Layout::kNHWC;
  BnWalk w{};
  w.all_lanes = nhwc ? s.channels / vector : s.channels;
  w.plane = s.area / vector;
  w.items = s.batch * (nhwc ? s.area : w.plane);
  // Adjacent lanes are adjacent in memory in NHWC only.
  w.lanes = ceil_div(w.all_lanes, ceil_div(w.all_lanes, nhwc ? widest : 1));
  w.groups = ceil_div(w.all_lanes, w.lanes);
  w.slots = std::min(kBnThreads / w.lanes, w.items);
  w.splits = std::min(std::max(1u, blocks / w.groups), ceil_div(w.items, w.slots));
  return w;
}

}  // namespace resnet_fused::cuda
