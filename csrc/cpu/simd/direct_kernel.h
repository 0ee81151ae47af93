// The direct convolution, for one element type A (register_block.h).
//
// A task computes a few output rows of one image and all, or a group, of the output channels:
//   1. Copy the input rows it needs into a zero-padded slab in L2 (NHWC, from any input layout). The inner loops then
//      have no edges, and a kernel row, S * C values, is one contiguous run. Converts to A::Operand. Skipped if x is
//      usable as it is.
//   2. For each block of output channels, whose weights stay in L1/L2 for the whole task, and each tile of a row:
//      reduce in registers, then apply scale, shift, residual and ReLU, and store.
#pragma once
#include <cstdlib>
#include <cstring>

#include "cpu/direct.h"
#include "cpu/simd/direct_tiling.h"

namespace resnet_fused::cpu::simd::direct {
namespace {

constexpr int kMaxKernel = 64;  // at most this many runs (R * S)

// Copies contiguous elements.
template <typename A>
void copy(const typename A::Elem* from, int64_t count, typename A::Operand* to) {
  if constexpr (kConverts<A>) {
    using V = typename A::V;
    int64_t i = 0;
    for (; i + V::kLanes <= count; i += V::kLanes) V::store(to + i, A::load(from + i, V::first(V::kLanes)));
    for (; i < count; ++i) to[i] = A::value(from[i]);
  } else {
    constexpr int kFew = 32 / sizeof(typename A::Elem);  // without a call: a pixel of a group is that small
    for (; count >= kFew && count <= 8 * kFew; count -= kFew, from += kFew, to += kFew) memcpy(to, from, 32);
    if (count) memcpy(to, from, static_cast<size_t>(count) * sizeof(typename A::Elem));
  }
}

template <typename T>
void fill_zeros(T* to, int64_t count) {
  memset(to, 0, static_cast<size_t>(count) * sizeof(T));
}

// Copies `count` pixels of a row to NHWC, `step` elements apart, with zeros for missing channels.
template <typename A>
void copy_pixels(const DirectConv& q, const typename A::Elem* from, int count, int64_t step, typename A::Operand* to) {
  if (q.xc == 1 && q.xw == q.c && step == q.c) {
    copy<A>(from, static_cast<int64_t>(count) * q.c, to);
  } else if (q.xc == 1 && q.c == A::V::kLanes && step == q.c) {  // groups: without a loop for each pixel
    for (int j = 0; j < count; ++j, to += step, from += q.xw) copy<A>(from, A::V::kLanes, to);
  } else if (q.xc == 1 && q.c == 2 * A::V::kLanes && step == q.c) {
    for (int j = 0; j < count; ++j, to += step, from += q.xw) copy<A>(from, 2 * A::V::kLanes, to);
  } else if (q.xc == 1) {
    for (int j = 0; j < count; ++j, to += step, from += q.xw) {
      copy<A>(from, q.c, to);
      if (step > q.c) fill_zeros(to + q.c, step - q.c);
    }
  } else {
    if (step != q.c) fill_zeros(to, count * step);
    for (int c = 0; c < q.c; ++c)
      for (int j = 0; j < count; ++j) to[j * step + c] = operand<A>(from[c * q.xc + j * q.xw]);
  }
}

// Copies input rows [first, first + count) of one image, zero-padded: (count, width) pixels, `step` elements apart.
template <typename A>
void copy_slab(const DirectConv& q, int image, int first, int count, int width, int64_t step,
               typename A::Operand* slab) {
  const auto* x = static_cast<const typename A::Elem*>(q.x) + image * q.xn;
  const int left = q.pad_w, inside = q.w < width - left ? q.w : width - left;  // columns that exist
  for (int i = 0; i < count; ++i) {
    typename A::Operand* row = slab + int64_t{i} * width * step;
    const int h = first + i;
    if (h < 0 || h >= q.h || inside <= 0) {
      fill_zeros(row, width * step);
      continue;
    }
    fill_zeros(row, left * step);
    copy_pixels<A>(q, x + h * q.xh, inside, step, row + left * step);
    fill_zeros(row + (left + inside) * step, (width - left - inside) * step);
  }
}

// Pools one output row. conv holds the last pool_r rows of the convolution, row i at i % pool_r.
template <typename A>
void max_pool_row(const DirectConv& q, const typename A::Elem* conv, int p, typename A::Elem* out) {
  using V = typename A::V;
  for (int j = 0; j < q.pw; ++j)
    for (int k = 0; k < q.k; k += V::kLanes) {
      const typename V::Mask lanes = V::first(q.k - k);
      // every window covers at least one pixel (check_pool), and after ReLU the minimum is 0
      typename V::Reg best = V::zero();
      for (int a = 0; a < q.pool_r; ++a)
        for (int b = 0; b < q.pool_s; ++b) {
          const int i = p * q.pool_stride_h - q.pool_pad_h + a, x = j * q.pool_stride_w - q.pool_pad_w + b;
          if (i < 0 || i >= q.oh || x < 0 || x >= q.ow) continue;
          best =
              V::larger_or_nan(best, A::load(conv + (static_cast<int64_t>(i % q.pool_r) * q.ow + x) * q.k + k, lanes));
        }
      A::store(out + static_cast<int64_t>(j) * q.k + k, best, lanes);
    }
}

template <typename A>
class DirectTask {
  using V = typename A::V;
  using Elem = typename A::Elem;
  using Operand = typename A::Operand;

 public:
  DirectTask(const DirectConv& conv, const DirectTiling& t)
      : q_(with_unit_stride(conv)), t_(t), slab_(needs_slab<A>(q_)), patches_(patches<A>(conv.c, conv.s)) {
    const DirectConv& q = q_;
    const int channels = slab_ ? round_up(q.c, A::kPack) : q.c;
    padded_ = slab_ ? (q.ow - 1) * q.stride_w + (q.s - 1) * q.dil_w + 1 : q.w;
    width_ = patches_ ? q.ow : padded_;
    step_ = patches_ ? row_values<A>(q.c, q.s)
                     : channels + (slab_ && aliases<A>(q, channels) ? kCacheLine / int{sizeof(Operand)} : 0);
    const int64_t row = int64_t{width_} * step_;
    // if pixels are adjacent, a kernel row is one run of S * C values
    const bool whole_rows = patches_ || (q.dil_w == 1 && step_ == channels);
    runs_.count = whole_rows ? q.r : q.r * q.s;
    runs_.steps = (whole_rows ? row_values<A>(q.c, q.s) : channels) / A::kPack;
    runs_.offset = offset_;
    for (int i = 0; i < runs_.count; ++i)
      offset_[i] = whole_rows ? int64_t{i} * q.dil_h * row
                              : int64_t{i / q.s} * q.dil_h * row + int64_t{i % q.s} * q.dil_w * step_;
    reduction_ = static_cast<int64_t>(q.r) * row_values<A>(q.c, q.s);
  }

  void run(int64_t task) {
    const int block = static_cast<int>(task % t_.blocks), group = static_cast<int>(task / t_.blocks % t_.k_groups);
    const int image = static_cast<int>(task / t_.blocks / t_.k_groups);
    const int wide = t_.vectors * V::kLanes, channel_blocks = ceil_div(q_.k, wide);
    k0_ = static_cast<int64_t>(channel_blocks) * group / t_.k_groups * wide;
    k1_ = min(q_.k, static_cast<int64_t>(channel_blocks) * (group + 1) / t_.k_groups * wide);
    const int first = static_cast<int>(t_.units * block / t_.blocks);
    const int last = static_cast<int>(t_.units * (block + 1) / t_.blocks);
    if (t_.flat)
      flat(static_cast<int64_t>(first) * kFlatUnit<A>, static_cast<int64_t>(last) * kFlatUnit<A>);
    else if (q_.pool_r)
      pooled(image, first, last);
    else
      plain(image, first, last);
  }

  // Whether all weights that the tasks packed are finite.
  bool finite() const { return finite_; }

 private:
  // Pixels [first, last) of all images.
  void flat(int64_t first, int64_t last) {
    const int64_t pixels = static_cast<int64_t>(q_.n) * q_.oh * q_.ow;
    const int count = static_cast<int>((last < pixels ? last : pixels) - first);
    const Operand* x = slab_ ? copy_flat(first, count) : in_place(static_cast<const Elem*>(q_.x) + first * q_.c);
    rows(x, 0, 1, count, residual(first), static_cast<Elem*>(q_.out) + first * q_.k, 0);
  }

  // A slab of the pixels [first, first + count) of all images.
  const Operand* copy_flat(int64_t first, int count) {
    auto* slab = static_cast<Operand*>(slab_scratch_.get(count * step_ * sizeof(Operand)));
    const Elem* x = static_cast<const Elem*>(q_.x);
    for (int done = 0, run; done < count; done += run) {  // as much of a row as there is
      const int64_t p = first + done, row = p / q_.ow;
      const int column = static_cast<int>(p % q_.ow);
      run = min(q_.ow - column, count - done);
      copy_pixels<A>(q_, x + row / q_.oh * q_.xn + row % q_.oh * q_.xh + column * q_.xw, run, step_,
                     slab + done * step_);
    }
    return slab;
  }

  // Output rows [first, last) of an image.
  void plain(int image, int first, int last) {
    const int64_t at = (static_cast<int64_t>(image) * q_.oh + first) * q_.ow;
    rows(input_rows(image, first, last), input_row_step(), last - first, q_.ow, residual(at),
         static_cast<Elem*>(q_.out) + at * q_.k, top(first));
  }

  // Pooled rows [first, last) of an image; computes each conv row when the first window needs it.
  void pooled(int image, int first, int last) {
    const auto begin = [&](int p) {
      return p * q_.pool_stride_h > q_.pool_pad_h ? p * q_.pool_stride_h - q_.pool_pad_h : 0;
    };
    const auto end = [&](int p) {
      const int row = p * q_.pool_stride_h - q_.pool_pad_h + q_.pool_r;
      return row < q_.oh ? row : q_.oh;
    };
    const int64_t row_elems = static_cast<int64_t>(q_.ow) * q_.k;
    Elem* ring = static_cast<Elem*>(pool_scratch_.get(q_.pool_r * row_elems * sizeof(Elem)));
    Elem* out = static_cast<Elem*>(q_.out) + static_cast<int64_t>(image) * q_.ph * q_.pw * q_.k;
    const int start = begin(first);
    const Operand* x = input_rows(image, start, end(last - 1));
    int done = start;
    for (int p = first; p < last; ++p) {
      for (int i = done > begin(p) ? done : begin(p); i < end(p); ++i)
        rows(x + (i - start) * input_row_step(), 0, 1, q_.ow, nullptr, ring + (i % q_.pool_r) * row_elems, top(i));
      done = end(p);
      max_pool_row<A>(q_, ring, p, out + static_cast<int64_t>(p) * q_.pw * q_.k);
    }
  }

  int top(int row) const { return row * q_.stride_h - q_.pad_h; }  // the input row under the output row's first tap
  int64_t input_row_step() const { return int64_t{q_.stride_h} * width_ * step_; }
  const Elem* residual(int64_t pixel) const {
    return q_.residual ? static_cast<const Elem*>(q_.residual) + pixel * q_.k : nullptr;
  }

  // Elements as operands, for tasks without a slab.
  static const Operand* in_place(const Elem* x) { return static_cast<const Operand*>(static_cast<const void*>(x)); }

  // The input of output rows [first, last) of an image, starting at the first row's first tap.
  const Operand* input_rows(int image, int first, int last) {
    if (!slab_) return in_place(static_cast<const Elem*>(q_.x) + image * q_.xn + top(first) * q_.xh);
    const int count = (last - first - 1) * q_.stride_h + (q_.r - 1) * q_.dil_h + 1;
    auto* slab = static_cast<Operand*>(slab_scratch_.get(int64_t{count} * width_ * step_ * sizeof(Operand)));
    if (!patches_) {
      copy_slab<A>(q_, image, top(first), count, width_, step_, slab);
      return slab;
    }
    auto* row = static_cast<Operand*>(row_scratch_.get(static_cast<size_t>(padded_) * q_.c * sizeof(Operand)));
    for (int i = 0; i < count; ++i) {
      copy_slab<A>(q_, image, top(first) + i, 1, padded_, q_.c, row);
      Operand* patch = slab + int64_t{i} * q_.ow * step_;
      constexpr int kRgb = 7 * 3;  // values under an RGB stem's column: a copy of constant size is inlined
      const int values = q_.s * q_.c;
      if (q_.dil_w > 1)
        copy_patches(row, patch, [this](Operand* to, const Operand* from) {
          for (int tap = 0; tap < q_.s; ++tap)
            memcpy(to + tap * q_.c, from + int64_t{tap} * q_.dil_w * q_.c, q_.c * sizeof(Operand));
        });
      else if (values == kRgb)
        copy_patches(row, patch, [](auto* to, const auto* from) { memcpy(to, from, kRgb * sizeof(Operand)); });
      else
        copy_patches(row, patch, [=](auto* to, const auto* from) { memcpy(to, from, values * sizeof(Operand)); });
    }
    return slab;
  }

  // Copies the values under each output column of a row with copy(to, from), padded to whole steps.
  template <typename Copy>
  void copy_patches(const Operand* row, Operand* patch, const Copy& copy) const {
    const int64_t values = static_cast<int64_t>(q_.s) * q_.c;
    for (int j = 0; j < q_.ow; ++j, patch += step_, row += static_cast<int64_t>(q_.stride_w) * q_.c) {
      copy(patch, row);
      for (int64_t c = values; c < step_; ++c) patch[c] = Operand(0);
    }
  }

  // Computes output rows of `width` pixels; `top` is the input row under the first row's first tap.
  void rows(const Operand* x, int64_t row_step, int count, int width, const Elem* residual, Elem* out, int top) {
    // Weights that fit in L2 beside the slab are re-read for each tile, so that output and residual are accessed front
    // to back. Larger weights are the outer loop instead: each block stays for all tiles of the task.
    const bool channels_inside =
        !t_.packs && reduction_ * (k1_ - k0_) * static_cast<int64_t>(sizeof(Operand)) <= kSlabBytes<A>;
    const int at_once = width <= kShortRow ? V::kRowsOfShort : 1;
    if (channels_inside) {
      const int tiles = ceil_div(width, widest_tile<V>(t_.vectors));
      for (int i = 0; i < count; i += at_once)
        for (int j = 0; j < tiles; ++j)
          for (int k = k0_; k < k1_; k += block_vectors<V>(q_.k, k, t_.vectors) * V::kLanes)
            tile(x, row_step, i, min(at_once, count - i), width, j, tiles, k, residual, out, top, {nullptr, 0});
    } else {
      for (int k = k0_, nv; k < k1_; k += nv * V::kLanes) {
        nv = block_vectors<V>(q_.k, k, t_.vectors);
        if (t_.packs) pack_block(k, nv);
        const int tiles = ceil_div(width, widest_tile<V>(nv));
        Ahead next = weights_after(k, nv);
        next.bytes /= int64_t{tiles} * ceil_div(count, at_once);  // each tile prefetches its share
        for (int i = 0; i < count; i += at_once)
          for (int j = 0; j < tiles; ++j, next.from += next.bytes)
            tile(x, row_step, i, min(at_once, count - i), width, j, tiles, k, residual, out, top, next);
      }
    }
  }

  // What comes from memory and is needed soon.
  struct Ahead {
    const char* from;
    int64_t bytes;
  };

  // Packs the channel block at k, for this task alone.
  void pack_block(int k, int nv) {
    const int64_t values = reduction_ * nv * V::kLanes;
    auto* block = static_cast<Operand*>(weights_scratch_.get(static_cast<size_t>(values) * sizeof(Operand)));
    own_weights_ = block;
    const int end = min(q_.k, k + nv * V::kLanes);
    finite_ &= pack<A>(block, q_.weight, q_.weight_strides, q_.c, q_.k, q_.r, q_.s, nv, k, end, k);
  }

  // The packed weights of the channel block at k.
  const Operand* weights_of(int64_t k) const {
    return t_.packs ? own_weights_ : static_cast<const Operand*>(q_.packed) + k * reduction_;
  }

  // The weights of the channel block after the one at k.
  Ahead weights_after(int k, int nv) const {
    const int64_t at = k + nv * V::kLanes, count = nv * V::kLanes;
    if (at >= k1_) return {static_cast<const char*>(q_.x), 0};
    if (!t_.packs)
      return {reinterpret_cast<const char*>(weights_of(at)),
              count * reduction_ * static_cast<int64_t>(sizeof(Operand))};
    const int64_t filter = q_.weight_strides[0] * static_cast<int64_t>(sizeof(Elem));
    return {static_cast<const char*>(q_.weight) + at * filter, (q_.k - at < count ? q_.k - at : count) * filter};
  }

  // Tile j of `rows` rows from row i on, for the channel block at k. Tiles have nearly equal widths: 15 pixels are 8 +
  // 7, not 14 + 1.
  void tile(const Operand* x, int64_t row_step, int i, int rows, int width, int j, int tiles, int k,
            const Elem* residual, Elem* out, int top, Ahead next) {
    const int nv = block_vectors<V>(q_.k, k, t_.vectors);
    const int from = static_cast<int>(static_cast<int64_t>(width) * j / tiles);
    const int mr = static_cast<int>(static_cast<int64_t>(width) * (j + 1) / tiles) - from;
    // skip kernel rows in the padding: at 7x7 they are a tenth of the work
    const int above = top + i * q_.stride_h, above_last = above + (rows - 1) * q_.stride_h;
    int tap0 = 0, tap1 = q_.r;
    while (tap0 < tap1 && above_last + tap0 * q_.dil_h < 0) ++tap0;
    while (tap1 > tap0 && above + (tap1 - 1) * q_.dil_h >= q_.h) --tap1;
    const int per_row = runs_.count / q_.r;

    Tile t{};
    t.pixels = {patches_ ? step_ : q_.stride_w * step_, row_step};
    const Operand* from_x = x + i * row_step + from * t.pixels.step;
    if (!next.from) {
      const bool reads_first = t_.flat && k == k0_;  // no earlier block has read the next tile's pixels
      next = {reinterpret_cast<const char*>(from_x + mr * t.pixels.step),
              reads_first ? mr * t.pixels.step * static_cast<int64_t>(sizeof(Operand)) : 0};
    }
    const int runs = (tap1 - tap0) * per_row;
    const int64_t next_step = next.bytes / (int64_t{runs} * runs_.steps + 1);
    t.runs = {offset_ + tap0 * per_row, runs, runs_.steps, next.from, next_step};
    t.scale = q_.scale + k;
    t.shift = q_.shift + k;
    t.k = q_.k;
    t.channels_left = q_.k - k;
    t.relu = q_.relu;
    t.ahead = q_.k - k > nv * V::kLanes ? nv * V::kLanes : 0;
    const Operand* w = weights_of(k) + reduction_ / q_.r * tap0 * nv * V::kLanes;
    const int64_t at = (static_cast<int64_t>(i) * width + from) * q_.k + k;
    tile_fn<A>(rows, mr, nv)(t, from_x, w, residual ? residual + at : nullptr, out + at);
  }

  const DirectConv q_;
  const DirectTiling& t_;
  const bool slab_, patches_;
  int padded_, width_;  // columns of a padded input row; pixels in a row of the slab, or of x
  int64_t step_;        // elements between pixels
  int k0_, k1_;         // the task's output channels
  int64_t reduction_;
  const Operand* own_weights_ = nullptr;  // the channel block that this task packed
  bool finite_ = true;
  Runs runs_;
  int64_t offset_[kMaxKernel];
  static thread_local Scratch slab_scratch_, row_scratch_, pool_scratch_, weights_scratch_;
};

template <typename A>
thread_local Scratch DirectTask<A>::row_scratch_;
template <typename A>
thread_local Scratch DirectTask<A>::slab_scratch_;
template <typename A>
thread_local Scratch DirectTask<A>::pool_scratch_;
template <typename A>
thread_local Scratch DirectTask<A>::weights_scratch_;

template <typename A>
int64_t packed_bytes(int c, int k, int r, int s) {
  const int64_t elements = static_cast<int64_t>(round_up(k, A::V::kLanes)) * r * row_values<A>(c, s);
  return elements * static_cast<int64_t>(sizeof(typename A::Operand));
}

template <typename A>
bool run(const DirectConv& conv, const DirectTiling& tiling, int64_t begin, int64_t end) {
  DirectTask<A> task(conv, tiling);
  for (int64_t i = begin; i < end; ++i) task.run(i);
  return task.finite();
}

template <typename A>
constexpr DirectKernels kKernels = {A::V::kLanes, packed_bytes<A>, tiling<A>, pack<A>, run<A>, /*depth_first=*/false};

}  // namespace
}  // namespace resnet_fused::cpu::simd::direct
