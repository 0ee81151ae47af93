// The direct convolution, for one element type A (Fp32 or Bf16 of micro_kernel.h).
//
// A task computes a few output rows of one image and all, or a group, of the output channels:
//   1. Copy the input rows it needs into a zero-padded slab in L2 (NHWC, from any input layout). The inner loops then
//      have no edges, and a kernel row, S * C values, is one contiguous run. Skipped if x is usable as it is.
//   2. For each block of output channels, whose weights stay in L1/L2 for the whole task, and each tile of a row:
//      reduce in registers, then apply scale, shift, residual and ReLU, and store.
#pragma once
#include <cstdlib>
#include <cstring>

#include "cpu/direct.h"
// after direct.h, which defines kLanes
#include "cpu/avx512/micro_kernel.h"

namespace resnet_fused::cpu::avx512 {
namespace {

constexpr int64_t kSlabBytes = 256 << 10;  // a quarter of a 1 MiB L2; the weights of a channel block take another
constexpr int kFlatUnit = 14;              // pixels per unit of a flattened 1x1
constexpr int kMaxKernel = 64;             // at most this many runs (R * S)

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
inline int round_up(int a, int b) { return (a + b - 1) / b * b; }

inline bool nhwc(const DirectConv& q) { return q.xc == 1 && q.xw == q.c && q.xh == static_cast<int64_t>(q.w) * q.c; }

// Neighbouring pixels a multiple of 4 KiB apart map to the same L1 set and would evict each other at every step.
template <typename A>
bool aliases(const DirectConv& q, int64_t channels) {
  return channels * q.stride_w * sizeof(typename A::Elem) % 4096 == 0;
}

template <typename A>
bool needs_slab(const DirectConv& q) {
  return q.pad_h || q.pad_w || !nhwc(q) || q.c % A::kPack || aliases<A>(q, q.c);
}

// If C is odd and a step takes two channels, each output column gets its own copy of the S * C values under it, padded
// once, instead of padding every pixel: 22 values instead of 28 for the 7x3 of an RGB stem.
template <typename A>
constexpr bool patches(int c, int s) {
  return c % A::kPack && s > 1;
}

// Values of one kernel row, padding to whole steps included.
template <typename A>
int row_values(int c, int s) {
  return patches<A>(c, s) ? round_up(s * c, A::kPack) : s * round_up(c, A::kPack);
}

// One tile: MR pixels, NV * 16 channels.
struct Tile {
  int64_t pixel_step;  // elements between neighbouring output pixels in the input
  Runs runs;
  const float *scale, *shift;  // of this channel block
  int k, channels_left;        // row length of out; channels of this block that exist
  bool relu;
};

template <typename A, int MR, int NV>
void run_tile(const Tile& t, const typename A::Elem* x, const typename A::Elem* w, const typename A::Elem* residual,
              typename A::Elem* out) {
  using Elem = typename A::Elem;
  // Prefetch the epilogue's operands; the reduction hides the latency.
  constexpr int kLine = 64 / sizeof(Elem);
  for (int m = 0; m < MR; ++m)
    for (int at = 0; at < NV * kLanes; at += kLine) {
      if (residual)
        _mm_prefetch(reinterpret_cast<const char*>(residual + static_cast<int64_t>(m) * t.k + at), _MM_HINT_T0);
      __builtin_prefetch(out + static_cast<int64_t>(m) * t.k + at, 1, 3);
    }
  __m512 acc[MR][NV];
  accumulate<A, MR, NV>(acc, x, t.pixel_step, t.runs, w);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const __mmask16 mask = lanes_left(t.channels_left - v * kLanes);
    const __m512 scale = _mm512_loadu_ps(t.scale + v * kLanes), shift = _mm512_loadu_ps(t.shift + v * kLanes);
#pragma GCC unroll 14
    for (int m = 0; m < MR; ++m) {
      const int64_t at = static_cast<int64_t>(m) * t.k + v * kLanes;
      __m512 y = _mm512_fmadd_ps(acc[m][v], scale, shift);
      if (residual) y = _mm512_add_ps(y, A::load(residual + at, mask));
      if (t.relu) y = relu(y);
      A::store(out + at, y, mask);
    }
  }
}

template <typename A>
using TileFn = void (*)(const Tile&, const typename A::Elem*, const typename A::Elem*, const typename A::Elem*,
                        typename A::Elem*);

// Instances of run_tile: up to 14 pixels with one or two registers of channels, up to 7 with four.
template <typename A>
TileFn<A> tile_fn(int mr, int nv) {
#define ROW7(NV)                                                                                      \
  run_tile<A, 1, NV>, run_tile<A, 2, NV>, run_tile<A, 3, NV>, run_tile<A, 4, NV>, run_tile<A, 5, NV>, \
      run_tile<A, 6, NV>, run_tile<A, 7, NV>
#define ROW14(NV)                                                                                                  \
  ROW7(NV), run_tile<A, 8, NV>, run_tile<A, 9, NV>, run_tile<A, 10, NV>, run_tile<A, 11, NV>, run_tile<A, 12, NV>, \
      run_tile<A, 13, NV>, run_tile<A, 14, NV>
  static constexpr TileFn<A> one[] = {ROW14(1)}, two[] = {ROW14(2)}, four[] = {ROW7(4)};
#undef ROW14
#undef ROW7
  return nv == 1 ? one[mr - 1] : nv == 2 ? two[mr - 1] : four[mr - 1];
}

constexpr int widest_tile(int nv) { return nv == 4 ? 7 : 14; }

// Channel blocks: as many of `vectors` registers as fit, then narrower ones.
inline int block_vectors(int k, int at, int vectors) {
  const int left = ceil_div(k - at, kLanes);
  return left >= vectors ? vectors : left >= 2 ? 2 : 1;
}

template <typename A>
DirectTiling tiling(const DirectConv& q, int threads) {
  constexpr int64_t kSize = sizeof(typename A::Elem);
  DirectTiling t{};
  t.flat = q.r == 1 && q.s == 1 && q.stride_h == 1 && q.stride_w == 1 && !q.pool_r && nhwc(q) && !q.pad_h && !q.pad_w &&
           q.c % A::kPack == 0 && q.xn == static_cast<int64_t>(q.h) * q.xh;
  t.vectors = !t.flat && q.ow <= 7 && q.k >= 4 * kLanes ? 4 : 2;
  t.units = t.flat ? ceil_div(static_cast<int64_t>(q.n) * q.oh * q.ow, kFlatUnit) : q.pool_r ? q.ph : q.oh;
  // input bytes per unit; plan.cpp (slab_bytes) bounds the slab of the resulting task
  const int64_t row = t.flat ? kFlatUnit * q.c * kSize : q.w * q.c * kSize;
  const int64_t fit =
      row ? t.flat ? kSlabBytes / row : kSlabBytes / row / q.stride_h / (q.pool_r ? q.pool_stride_h : 1) : 0;
  t.blocks = ceil_div(t.units, fit ? fit : 1);
  t.k_groups = 1;
  // balance the load: with few tasks, make their number a multiple of the threads
  const int64_t tasks = static_cast<int64_t>(t.flat ? 1 : q.n) * t.blocks;
  if (tasks < 4 * threads && tasks % threads) {
    const int more = round_up(t.blocks, threads);
    const int channel_blocks = ceil_div(q.k, t.vectors * kLanes);
    if (t.blocks > 1 && more <= t.units)
      t.blocks = more;
    else if (!q.pool_r)
      t.k_groups = channel_blocks < threads ? channel_blocks : threads;
  }
  t.tasks = static_cast<int64_t>(t.flat ? 1 : q.n) * t.blocks * t.k_groups;
  return t;
}

// Copies `count` pixels of a row to NHWC, `step` elements apart, with zeros for missing channels.
template <typename A>
void copy_pixels(const DirectConv& q, const typename A::Elem* from, int count, int64_t step, typename A::Elem* to) {
  using Elem = typename A::Elem;
  if (q.xc == 1 && q.xw == q.c && step == q.c) {
    memcpy(to, from, static_cast<size_t>(count) * q.c * sizeof(Elem));
  } else if (q.xc == 1) {
    for (int j = 0; j < count; ++j, to += step, from += q.xw) {
      memcpy(to, from, q.c * sizeof(Elem));
      memset(to + q.c, 0, (step - q.c) * sizeof(Elem));
    }
  } else {
    if (step != q.c) memset(to, 0, count * step * sizeof(Elem));
    for (int c = 0; c < q.c; ++c)
      for (int j = 0; j < count; ++j) to[j * step + c] = from[c * q.xc + j * q.xw];
  }
}

// Copies input rows [first, first + count) of one image, zero-padded: (count, width) pixels, `step` elements apart.
template <typename A>
void copy_slab(const DirectConv& q, int image, int first, int count, int width, int64_t step, typename A::Elem* slab) {
  using Elem = typename A::Elem;
  const Elem* x = static_cast<const Elem*>(q.x) + image * q.xn;
  const int left = q.pad_w, inside = q.w < width - left ? q.w : width - left;  // columns that exist
  for (int i = 0; i < count; ++i) {
    Elem* row = slab + int64_t{i} * width * step;
    const int h = first + i;
    if (h < 0 || h >= q.h || inside <= 0) {
      memset(row, 0, width * step * sizeof(Elem));
      continue;
    }
    memset(row, 0, left * step * sizeof(Elem));
    copy_pixels<A>(q, x + h * q.xh, inside, step, row + left * step);
    memset(row + (left + inside) * step, 0, (width - left - inside) * step * sizeof(Elem));
  }
}

// Pools one output row. conv holds the last pool_r rows of the convolution, row i at i % pool_r.
template <typename A>
void max_pool_row(const DirectConv& q, const typename A::Elem* conv, int p, typename A::Elem* out) {
  for (int j = 0; j < q.pw; ++j)
    for (int k = 0; k < q.k; k += kLanes) {
      const __mmask16 mask = lanes_left(q.k - k);
      // every window covers at least one pixel (check_pool), and after ReLU the minimum is 0
      __m512 best = _mm512_setzero_ps();
      for (int a = 0; a < q.pool_r; ++a)
        for (int b = 0; b < q.pool_s; ++b) {
          const int i = p * q.pool_stride_h - q.pool_pad_h + a, x = j * q.pool_stride_w - q.pool_pad_w + b;
          if (i < 0 || i >= q.oh || x < 0 || x >= q.ow) continue;
          const __m512 v = A::load(conv + (static_cast<int64_t>(i % q.pool_r) * q.ow + x) * q.k + k, mask);
          // keeps a NaN already there, and propagates a new one
          best = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(v, best, _CMP_GT_OQ) | _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q),
                                      best, v);
        }
      A::store(out + static_cast<int64_t>(j) * q.k + k, best, mask);
    }
}

template <typename A>
class DirectTask {
  using Elem = typename A::Elem;

 public:
  DirectTask(const DirectConv& q, const DirectTiling& t)
      : q_(q), t_(t), slab_(needs_slab<A>(q)), patches_(patches<A>(q.c, q.s)) {
    const int channels = slab_ ? round_up(q.c, A::kPack) : q.c;
    padded_ = slab_ ? (q.ow - 1) * q.stride_w + (q.s - 1) * q.dil_w + 1 : q.w;
    width_ = patches_ ? q.ow : padded_;
    step_ = patches_ ? row_values<A>(q.c, q.s) : channels + (slab_ && aliases<A>(q, channels) ? kLanes * A::kPack : 0);
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
    const int group = task % t_.k_groups, block = task / t_.k_groups % t_.blocks;
    const int image = static_cast<int>(task / t_.k_groups / t_.blocks);
    const int wide = t_.vectors * kLanes, channel_blocks = ceil_div(q_.k, wide);
    k0_ = static_cast<int64_t>(channel_blocks) * group / t_.k_groups * wide;
    k1_ = static_cast<int64_t>(channel_blocks) * (group + 1) / t_.k_groups * wide;
    if (k1_ > q_.k) k1_ = q_.k;
    const int first = static_cast<int>(t_.units * block / t_.blocks);
    const int last = static_cast<int>(t_.units * (block + 1) / t_.blocks);
    if (t_.flat)
      flat(static_cast<int64_t>(first) * kFlatUnit, static_cast<int64_t>(last) * kFlatUnit);
    else if (q_.pool_r)
      pooled(image, first, last);
    else
      plain(image, first, last);
  }

 private:
  // Pixels [first, last) of all images.
  void flat(int64_t first, int64_t last) {
    const int64_t pixels = static_cast<int64_t>(q_.n) * q_.oh * q_.ow;
    const int count = static_cast<int>((last < pixels ? last : pixels) - first);
    const Elem* x = static_cast<const Elem*>(q_.x) + first * q_.c;
    if (slab_) {
      Elem* slab = static_cast<Elem*>(slab_scratch_.get(count * step_ * sizeof(Elem)));
      copy_pixels<A>(q_, x, count, step_, slab);
      x = slab;
    }
    rows(x, 0, 1, count, residual(first), static_cast<Elem*>(q_.out) + first * q_.k, 0);
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
    const Elem* x = input_rows(image, start, end(last - 1));
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

  // The input of output rows [first, last) of an image, starting at the first row's first tap.
  const Elem* input_rows(int image, int first, int last) {
    if (!slab_) return static_cast<const Elem*>(q_.x) + image * q_.xn + top(first) * q_.xh;
    const int count = (last - first - 1) * q_.stride_h + (q_.r - 1) * q_.dil_h + 1;
    Elem* slab = static_cast<Elem*>(slab_scratch_.get(int64_t{count} * width_ * step_ * sizeof(Elem)));
    if (!patches_) {
      copy_slab<A>(q_, image, top(first), count, width_, step_, slab);
      return slab;
    }
    Elem* row = static_cast<Elem*>(row_scratch_.get(static_cast<size_t>(padded_) * q_.c * sizeof(Elem)));
    for (int i = 0; i < count; ++i) {
      copy_slab<A>(q_, image, top(first) + i, 1, padded_, q_.c, row);
      for (int j = 0; j < q_.ow; ++j) {
        Elem* patch = slab + (static_cast<int64_t>(i) * q_.ow + j) * step_;
        const Elem* under = row + static_cast<int64_t>(j) * q_.stride_w * q_.c;
        if (q_.dil_w == 1)
          memcpy(patch, under, static_cast<size_t>(q_.s) * q_.c * sizeof(Elem));
        else
          for (int tap = 0; tap < q_.s; ++tap)
            memcpy(patch + tap * q_.c, under + int64_t{tap} * q_.dil_w * q_.c, q_.c * sizeof(Elem));
        for (int64_t c = static_cast<int64_t>(q_.s) * q_.c; c < step_; ++c) patch[c] = Elem(0);
      }
    }
    return slab;
  }

  // Computes output rows of `width` pixels; `top` is the input row under the first row's first tap.
  void rows(const Elem* x, int64_t row_step, int count, int width, const Elem* residual, Elem* out, int top) {
    // Weights that fit in L2 beside the slab are re-read for each tile, so that output and residual are accessed front
    // to back. Larger weights are the outer loop instead: each block stays for all tiles of the task.
    const bool channels_inside = reduction_ * (k1_ - k0_) * static_cast<int64_t>(sizeof(Elem)) <= kSlabBytes;
    if (channels_inside) {
      const int tiles = ceil_div(width, widest_tile(t_.vectors));
      for (int i = 0; i < count; ++i)
        for (int j = 0; j < tiles; ++j)
          for (int k = k0_; k < k1_; k += block_vectors(q_.k, k, t_.vectors) * kLanes)
            tile(x, row_step, i, width, j, tiles, k, residual, out, top);
    } else {
      for (int k = k0_; k < k1_; k += block_vectors(q_.k, k, t_.vectors) * kLanes) {
        const int tiles = ceil_div(width, widest_tile(block_vectors(q_.k, k, t_.vectors)));
        for (int i = 0; i < count; ++i)
          for (int j = 0; j < tiles; ++j) tile(x, row_step, i, width, j, tiles, k, residual, out, top);
      }
    }
  }

  // Tile j of row i, for the channel block at k. Tiles have nearly equal widths: 15 pixels are 8 + 7, not 14 + 1.
  void tile(const Elem* x, int64_t row_step, int i, int width, int j, int tiles, int k, const Elem* residual, Elem* out,
            int top) {
    const int nv = block_vectors(q_.k, k, t_.vectors);
    const int from = static_cast<int>(static_cast<int64_t>(width) * j / tiles);
    const int mr = static_cast<int>(static_cast<int64_t>(width) * (j + 1) / tiles) - from;
    // skip kernel rows in the padding: at 7x7 they are a tenth of the work
    const int above = top + i * q_.stride_h;
    int tap0 = 0, tap1 = q_.r;
    while (tap0 < tap1 && above + tap0 * q_.dil_h < 0) ++tap0;
    while (tap1 > tap0 && above + (tap1 - 1) * q_.dil_h >= q_.h) --tap1;
    const int per_row = runs_.count / q_.r;

    Tile t{};
    t.pixel_step = patches_ ? step_ : q_.stride_w * step_;
    t.runs = {offset_ + tap0 * per_row, (tap1 - tap0) * per_row, runs_.steps};
    t.scale = q_.scale + k;
    t.shift = q_.shift + k;
    t.k = q_.k;
    t.channels_left = q_.k - k;
    t.relu = q_.relu;
    const Elem* w = static_cast<const Elem*>(q_.packed) + k * reduction_ + reduction_ / q_.r * tap0 * nv * kLanes;
    const int64_t at = (static_cast<int64_t>(i) * width + from) * q_.k + k;
    tile_fn<A>(mr, nv)(t, x + i * row_step + from * t.pixel_step, w, residual ? residual + at : nullptr, out + at);
  }

  const DirectConv& q_;
  const DirectTiling& t_;
  const bool slab_, patches_;
  int padded_, width_;  // columns of a padded input row; pixels in a row of the slab, or of x
  int64_t step_;        // elements between pixels
  int k0_, k1_;         // the task's output channels
  int64_t reduction_;
  Runs runs_;
  int64_t offset_[kMaxKernel];
  static thread_local Scratch slab_scratch_, row_scratch_, pool_scratch_;
};

template <typename A>
thread_local Scratch DirectTask<A>::row_scratch_;
template <typename A>
thread_local Scratch DirectTask<A>::slab_scratch_;
template <typename A>
thread_local Scratch DirectTask<A>::pool_scratch_;

// Packs (K, C, R, S) of any strides into channel blocks, each [R][values of a kernel row / kPack][16 * vectors][kPack],
// with zeros for missing channels.
template <typename A>
void pack(typename A::Elem* packed, const typename A::Elem* weight, const int64_t strides[4], int c, int k, int r,
          int s, int vectors) {
  using Elem = typename A::Elem;
  const int values = row_values<A>(c, s), per_tap = patches<A>(c, s) ? c : values / s;
  for (int k0 = 0; k0 < k;) {
    const int block = block_vectors(k, k0, vectors) * kLanes;
    Elem* to = packed + static_cast<int64_t>(k0) * r * values;
    for (int i = 0; i < r; ++i)
      for (int value = 0; value < values; value += A::kPack)
        for (int kk = 0; kk < block; ++kk)
          for (int e = value; e < value + A::kPack; ++e) {
            const int tap = e / per_tap, ch = e % per_tap;
            const bool exists = k0 + kk < k && tap < s && ch < c;
            *to++ =
                exists ? weight[(k0 + kk) * strides[0] + ch * strides[1] + i * strides[2] + tap * strides[3]] : Elem(0);
          }
    k0 += block;
  }
}

}  // namespace
}  // namespace resnet_fused::cpu::avx512
