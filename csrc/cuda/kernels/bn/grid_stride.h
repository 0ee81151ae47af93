// Maps a grid onto the activations of a BatchNorm, for elementwise kernels and reductions. Pure: no torch, no CUDA.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/device/types.h"

namespace resnet_fused::cuda {

enum class Layout : int32_t { kNHWC, kNCHW };

// A dense tensor of activations.
struct BnShape {
  Dtype dtype = Dtype::kFloat32;
  Layout layout = Layout::kNHWC;
  int32_t batch = 0;     // N
  int32_t channels = 0;  // C
  int32_t area = 0;      // H * W; N * C * H * W < 2^31

  bool empty() const { return batch == 0 || channels == 0 || area == 0; }
};

// Elements of an access of 16 bytes; float64 has only accesses of one element.
constexpr int widest_vector(Dtype dtype) { return dtype == Dtype::kFloat64 ? 1 : 16 / size_of(dtype); }

// Elements per access: the widest vector if every access is aligned and stays within one pixel (NHWC) or one plane
// (NCHW), else one element. `addresses` is the bitwise OR of all tensors' addresses.
inline int vector_of(const BnShape& s, uintptr_t addresses) {
  const int vector = widest_vector(s.dtype);
  const int run = s.layout == Layout::kNHWC ? s.channels : s.area;
  return addresses % 16 == 0 && run % vector == 0 ? vector : 1;
}

// A thread owns one lane: the channels of one access (NHWC) or one channel (NCHW). It reads their BatchNorm vectors
// once and loops over items: pixels (NHWC) or accesses of the channel's planes (NCHW). A block covers `slots` items of
// `lanes` adjacent lanes. `groups` blocks cover all lanes; in each group `splits` blocks share the items.
struct GridStrideLoop {
  uint32_t all_lanes, items;
  uint32_t plane;  // accesses per NCHW plane
  uint32_t lanes, slots, groups, splits;

  uint32_t block() const { return lanes * slots; }
  uint32_t grid() const { return groups * splits; }
};

constexpr uint32_t kBnThreads = 256;    // per block, at most
constexpr uint32_t kBnBlocksPerSm = 2;  // that registers must leave room for, at least

// Blocks have at most `widest` lanes; there are about `blocks` of them.
inline GridStrideLoop loop_over_activations(const BnShape& s, int vector, uint32_t widest, uint32_t blocks) {
  const auto ceil_div = [](uint32_t a, uint32_t b) { return (a + b - 1) / b; };
  const bool nhwc = s.layout == Layout::kNHWC;
  GridStrideLoop loop{};
  loop.all_lanes = nhwc ? s.channels / vector : s.channels;
  loop.plane = s.area / vector;
  loop.items = s.batch * (nhwc ? s.area : loop.plane);
  // Only in NHWC are adjacent lanes adjacent in memory, so an NCHW block has one lane.
  loop.lanes = ceil_div(loop.all_lanes, ceil_div(loop.all_lanes, nhwc ? widest : 1));
  loop.groups = ceil_div(loop.all_lanes, loop.lanes);
  loop.slots = std::min(kBnThreads / loop.lanes, loop.items);
  loop.splits = std::min(std::max(1u, blocks / loop.groups), ceil_div(loop.items, loop.slots));
  return loop;
}

}  // namespace resnet_fused::cuda
