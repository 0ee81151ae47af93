// bn_add_act on the host: what a launch asks for, which kernel runs it, how the grid covers it. Pure: no torch, no
// CUDA.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/batch_norm.h"
#include "cuda/dtype.h"

namespace resnet_fused::cuda {

enum class Layout : int32_t { kNHWC, kNCHW };
enum class Shortcut : int32_t { kNone, kAdd, kProjected };

// out = act(bn(x) + shortcut), or act(bn(x) + shortcut_bn(shortcut)). All three dense, of one dtype and layout.
// out may be x itself; the shortcut overlaps neither.
struct BnAddActParams {
  const void* x = nullptr;
  const void* shortcut = nullptr;  // null: none
  void* out = nullptr;
  BatchNormVectors bn;
  BatchNormVectors shortcut_bn;  // read if `projected`
  bool projected = false;        // the shortcut is a projection's raw output
  bool relu = false;
  Dtype dtype = Dtype::kFloat32;
  Layout layout = Layout::kNHWC;
  int32_t batch = 0;     // N
  int32_t channels = 0;  // C
  int32_t area = 0;      // H * W; N * C * H * W < 2^31
};

// What distinguishes one compiled kernel from another.
struct BnAddActVariant {
  Dtype dtype;
  int32_t vector;  // elements an access: 16 bytes, or one element
  Layout layout;
  Shortcut shortcut;

  bool operator==(const BnAddActVariant& o) const {
    return dtype == o.dtype && vector == o.vector && layout == o.layout && shortcut == o.shortcut;
  }
};

// 16-byte accesses wherever every one of them is aligned and stays within one row of channels (NHWC) or one plane
// (NCHW).
inline BnAddActVariant select_bn_add_act(const BnAddActParams& p) {
  const auto bits =
      reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.out) | reinterpret_cast<uintptr_t>(p.shortcut);
  const int vector = 16 / size_of(p.dtype);
  const int run = p.layout == Layout::kNHWC ? p.channels : p.area;
  const bool wide = p.dtype != Dtype::kFloat64 && bits % 16 == 0 && run % vector == 0;
  const Shortcut shortcut = !p.shortcut ? Shortcut::kNone : p.projected ? Shortcut::kProjected : Shortcut::kAdd;
  return {p.dtype, wide ? vector : 1, p.layout, shortcut};
}

// A thread owns one lane, that is the channels of one access (NHWC) or one channel (NCHW), computes their scale and
// shift once, and walks over items: pixels (NHWC), or the accesses of that channel's planes (NCHW). A block is `slots`
// items of `lanes` adjacent lanes; `groups` blocks side by side cover all lanes, and each group has `splits` blocks
// which share its items.
struct BnAddActWalk {
  uint32_t all_lanes, items;
  uint32_t plane;  // accesses an NCHW plane
  uint32_t lanes, slots, groups, splits;

  uint32_t block() const { return lanes * slots; }
  uint32_t grid() const { return groups * splits; }
};

constexpr uint32_t kBnAddActThreads = 256;  // a block, at most
constexpr uint32_t kBnAddActBlocksPerSm = 8;

inline BnAddActWalk walk_bn_add_act(const BnAddActParams& p, int vector, int sm_count) {
  const auto ceil_div = [](uint32_t a, uint32_t b) { return (a + b - 1) / b; };
  const bool nhwc = p.layout == Layout::kNHWC;
  BnAddActWalk w{};
  w.all_lanes = nhwc ? p.channels / vector : p.channels;
  w.plane = p.area / vector;
  w.items = p.batch * (nhwc ? p.area : w.plane);
  // Adjacent lanes are adjacent in memory in NHWC only.
  const uint32_t widest = nhwc ? kBnAddActThreads : 1;
  w.lanes = ceil_div(w.all_lanes, ceil_div(w.all_lanes, widest));
  w.groups = ceil_div(w.all_lanes, w.lanes);
  w.slots = std::min(kBnAddActThreads / w.lanes, w.items);
  const uint32_t room = std::max(1u, sm_count * kBnAddActBlocksPerSm / w.groups);
  w.splits = std::min(room, ceil_div(w.items, w.slots));
  return w;
}

}  // namespace resnet_fused::cuda
