// The grouped convolution, for one element type A (register_block.h).
//
// A task computes a few output rows of one image and the output channels of one section (grouped.h):
//   1. Copy the section's channels of the input rows it needs into a zero-padded slab of adjacent pixels, so that the
//      tiles have no edges. Converts to A::Operand.
//   2. For each block of output channels, and each tile of a row: reduce in registers, then scale, shift, residual and
//      ReLU.
// Sections are the innermost loop over tasks: those of the same pixels follow each other, while these are in L2.
#pragma once
#include "cpu/grouped.h"
#include "cpu/simd/direct_kernel.h"
#include "cpu/simd/grouped_tile.h"

namespace resnet_fused::cpu::simd::grouped {
namespace {

using direct::ceil_div, direct::round_up;

constexpr int64_t kSlabBytes = 64 << 10;  // 32 KiB to 128 KiB are as fast

inline int padded_width(const DirectConv& q) { return (q.ow - 1) * q.stride_w + (q.s - 1) * q.dil_w + 1; }

template <typename A>
GroupedTiling tiling(const DirectConv& q, int threads) {
  using V = typename A::V;
  GroupedTiling t{};
  const int c = q.c / q.groups, k = q.k / q.groups;
  t.narrow = is_narrow<A>(c, k);
  t.c = t.narrow ? V::kLanes : c;
  t.k = t.narrow ? V::kLanes : k;
  t.sections = t.narrow ? ceil_div(q.k, V::kLanes) : q.groups;
  constexpr int kMany = V::kManyVectors * V::kLanes;
  const bool whole = t.k % kMany == 0 && t.k % (2 * V::kLanes);  // 24 = 3 registers, instead of 2 + 1
  const bool many = (q.ow <= direct::kShortRow && t.k >= kMany) || whole;
  t.vectors = t.narrow ? 1 : many ? V::kManyVectors : 2;
  const int64_t row = int64_t{padded_width(q)} * round_up(t.c, A::kPack) * q.stride_h * sizeof(typename A::Operand);
  const int64_t fit = row ? kSlabBytes / row : 0;  // output rows
  t.blocks = ceil_div(q.oh, fit ? fit : 1);
  const int64_t tasks = int64_t{q.n} * t.blocks * t.sections;
  if (tasks < 4 * threads && tasks % threads) t.blocks = round_up(t.blocks, threads);  // balance the load
  if (t.blocks > q.oh) t.blocks = q.oh;
  t.tasks = int64_t{q.n} * t.blocks * t.sections;
  return t;
}

// Weights of one output channel.
template <typename A>
int64_t reduction(const DirectConv& q) {
  return int64_t{q.r} * q.s * round_up(q.c / q.groups, A::kPack);
}

template <typename A>
class GroupedTask {
  using V = typename A::V;
  using Elem = typename A::Elem;
  using Operand = typename A::Operand;

 public:
  GroupedTask(const DirectConv& q, const GroupedTiling& t)
      : q_(q),
        t_(t),
        section_(q),
        width_(padded_width(q)),
        step_(round_up(t.c, A::kPack)),
        reduction_(reduction<A>(q)),
        share_(q.s == 3 && q.dil_w == q.stride_w),
        words_(q.c / q.groups, t.narrow ? q.c / q.groups / A::kPack : 0) {
    const int64_t row = int64_t{width_} * step_;
    const int steps = ceil_div(q.c / q.groups, A::kPack);
    const bool whole_rows = t.narrow ? share_ : q.dil_w == 1;
    runs_.count = whole_rows ? q.r : q.r * q.s;
    runs_.steps = whole_rows && !t.narrow ? q.s * steps : steps;
    for (int i = 0; i < runs_.count; ++i)
      offset_[i] = whole_rows ? int64_t{i} * q.dil_h * row
                              : int64_t{i / q.s} * q.dil_h * row + int64_t{i % q.s} * q.dil_w * step_;
  }

  void run(int64_t task) {
    const int section = static_cast<int>(task % t_.sections), block = static_cast<int>(task / t_.sections % t_.blocks);
    const int image = static_cast<int>(task / t_.sections / t_.blocks);
    const int first = static_cast<int>(static_cast<int64_t>(q_.oh) * block / t_.blocks);
    const int last = static_cast<int>(static_cast<int64_t>(q_.oh) * (block + 1) / t_.blocks);
    const int64_t c0 = int64_t{section} * t_.c, k0 = int64_t{section} * t_.k;
    section_.x = static_cast<const Elem*>(q_.x) + c0 * q_.xc;
    section_.c = static_cast<int>(q_.c - c0 < t_.c ? q_.c - c0 : t_.c);
    section_.k = static_cast<int>(q_.k - k0 < t_.k ? q_.k - k0 : t_.k);
    const int count = (last - first - 1) * q_.stride_h + (q_.r - 1) * q_.dil_h + 1;
    auto* slab = static_cast<Operand*>(scratch_.get(int64_t{count} * width_ * step_ * sizeof(Operand)));
    direct::copy_slab<A>(section_, image, first * q_.stride_h - q_.pad_h, count, width_, step_, slab);
    const Operand* w = static_cast<const Operand*>(q_.packed) + section * round_up(t_.k, V::kLanes) * reduction_;
    const int64_t at = (static_cast<int64_t>(image) * q_.oh + first) * q_.ow;
    for (int k = 0, nv; k < section_.k; k += nv * V::kLanes) {
      nv = direct::block_vectors<V>(t_.k, k, t_.vectors);
      const int tiles = ceil_div(q_.ow, widest_tile<V>(nv));
      for (int i = first; i < last; ++i)
        for (int j = 0; j < tiles; ++j)
          tile(slab + int64_t{i - first} * q_.stride_h * width_ * step_, w + k * reduction_, i, j, tiles, k, nv,
               at + int64_t{i - first} * q_.ow, k0);
    }
  }

 private:
  // Tile j of output row i, whose first pixel is `row`, for the section's channels from k on.
  void tile(const Operand* x, const Operand* w, int i, int j, int tiles, int k, int nv, int64_t row, int64_t k0) {
    const int from = static_cast<int>(static_cast<int64_t>(q_.ow) * j / tiles);
    const int mr = static_cast<int>(static_cast<int64_t>(q_.ow) * (j + 1) / tiles) - from;
    // skip kernel rows in the padding
    const int above = i * q_.stride_h - q_.pad_h;
    int tap0 = 0, tap1 = q_.r;
    while (tap0 < tap1 && above + tap0 * q_.dil_h < 0) ++tap0;
    while (tap1 > tap0 && above + (tap1 - 1) * q_.dil_h >= q_.h) --tap1;
    const int per_row = runs_.count / q_.r;
    Tile t{};
    t.pixels.step = q_.stride_w * step_;
    x += from * t.pixels.step;
    t.runs = {offset_ + tap0 * per_row, (tap1 - tap0) * per_row, runs_.steps, reinterpret_cast<const char*>(x), 0};
    t.scale = q_.scale + k0 + k;
    t.shift = q_.shift + k0 + k;
    t.k = q_.k;
    t.channels_left = section_.k - k;
    t.relu = q_.relu;
    w += reduction_ / q_.r * tap0 * nv * V::kLanes;
    const int64_t at = (row + from) * q_.k + k0 + k;
    const Elem* residual = q_.residual ? static_cast<const Elem*>(q_.residual) + at : nullptr;
    Elem* out = static_cast<Elem*>(q_.out) + at;
    if (t_.narrow)
      narrow_tile_fn<A>(mr, share_)(t, words_, x, w, residual, out);
    else
      wide_tile_fn<A>(mr, nv)(t, x, w, residual, out);
  }

  const DirectConv& q_;
  const GroupedTiling& t_;
  DirectConv section_;  // x from the section's first channel on; its channels
  const int width_;     // pixels of a padded input row
  const int64_t step_;  // elements between pixels
  const int64_t reduction_;
  const bool share_;  // the taps of narrow groups what is permuted
  const Words<V> words_;
  Runs runs_{};
  int64_t offset_[direct::kMaxKernel];
  static thread_local Scratch scratch_;
};

template <typename A>
thread_local Scratch GroupedTask<A>::scratch_;

template <typename A>
int64_t packed_bytes(const DirectConv& q, const GroupedTiling& t) {
  return int64_t{t.sections} * round_up(t.k, A::V::kLanes) * reduction<A>(q) * sizeof(typename A::Operand);
}

// Packs (K, C / groups, R, S) of any strides into sections of channel blocks, each [R][S][channels / kPack][kLanes *
// vectors][kPack], with zeros for missing channels: the same for narrow groups, because a lane multiplies its own
// group's channels. Returns false if a value is not finite.
template <typename A>
bool pack(const DirectConv& q, const GroupedTiling& t, const void* weight, const int64_t strides[4], void* packed) {
  using V = typename A::V;
  const int c = q.c / q.groups;
  auto* to = static_cast<typename A::Operand*>(packed);
  bool finite = true;
  for (int section = 0; section < t.sections; ++section)
    for (int k = 0, nv; k < t.k; k += nv * V::kLanes) {
      nv = direct::block_vectors<V>(t.k, k, t.vectors);
      const int64_t first = int64_t{section} * t.k + k, end = int64_t{section + 1} * t.k;
      const int64_t left = (end < q.k ? end : q.k) - first;
      const int channels = static_cast<int>(left < nv * V::kLanes ? left : nv * V::kLanes);
      for (int tap = 0; tap < q.r * q.s; ++tap, to += nv * V::kLanes * round_up(c, A::kPack)) {
        const auto* from = static_cast<const typename A::Elem*>(weight) + first * strides[0] + tap / q.s * strides[2] +
                           tap % q.s * strides[3];
        finite &= direct::pack<A>(to, from, strides, c, channels, 1, 1, nv, 0, channels, 0);
      }
    }
  return finite;
}

template <typename A>
void run(const DirectConv& conv, const GroupedTiling& tiling, int64_t begin, int64_t end) {
  GroupedTask<A> task(conv, tiling);
  for (int64_t i = begin; i < end; ++i) task.run(i);
}

template <typename A>
constexpr GroupedKernels kKernels = {tiling<A>, packed_bytes<A>, pack<A>, run<A>};

}  // namespace
}  // namespace resnet_fused::cpu::simd::grouped
