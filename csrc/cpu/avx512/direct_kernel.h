// The direct convolution, for one element type A (Fp32 or Bf16 of micro_kernel.h).
//
// A task is a few output rows of one image and all, or a group, of the output channels:
//   1. copy the input rows it needs into a zero-padded slab in L2 (NHWC, any input layout; skipped where there is
//      neither padding nor a foreign layout), so that the inner loops have no edges and a row of the kernel, S * C
//      values, is one contiguous run;
//   2. for each block of output channels, whose weights stay in L1/L2 over the task, for each tile of a row: reduce
//      in registers, then scale, shift, residual, ReLU, store.
#pragma once
#include <cstdlib>
#include <cstring>

#include "cpu/direct.h"
// after direct.h, which defines kLanes
#include "cpu/avx512/micro_kernel.h"

namespace resnet_fused::cpu::avx512 {
namespace {

constexpr int64_t kSlabBytes = 256 << 10;  // a quarter of a 1 MiB L2; the weights of a channel block take another
constexpr int kMaxKernel = 64;             // R * S runs at most

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }
inline int round_up(int a, int b) { return (a + b - 1) / b * b; }

inline bool nhwc(const DirectConv& q) { return q.xc == 1 && q.xw == q.c && q.xh == static_cast<int64_t>(q.w) * q.c; }

// Neighbouring pixels a multiple of 4 KiB apart share one set of L1: 14 of them would evict each other at every step.
template <typename A>
bool aliases(const DirectConv& q, int64_t channels) {
  return channels * q.stride_w * sizeof(typename A::Elem) % 4096 == 0;
}

template <typename A>
bool needs_slab(const DirectConv& q) {
  return q.pad_h || q.pad_w || !nhwc(q) || q.c % A::kPack || aliases<A>(q, q.c);
}

// One tile: MR pixels, NV * 16 channels.
struct Tile {
  int64_t pixel_step;  // elements between neighbouring output pixels in the input
  Runs runs;
  const float *scale, *shift;  // at this channel block
  int k, channels_left;        // row length of out; channels of this block that exist
  bool relu;
};

template <typename A, int MR, int NV>
void run_tile(const Tile& t, const typename A::Elem* x, const typename A::Elem* w, const typename A::Elem* residual,
              typename A::Elem* out) {
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

// run_tile for every shape that can be asked for: at most 14 pixels with one or two registers across, 7 with four.
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
  DirectTiling t{};
  t.flat = q.r == 1 && q.s == 1 && q.stride_h == 1 && q.stride_w == 1 && !q.pool_r && nhwc(q) && !q.pad_h && !q.pad_w &&
           q.c % A::kPack == 0 && q.xn == static_cast<int64_t>(q.h) * q.xh;
  t.vectors = !t.flat && q.ow <= 7 && q.k >= 4 * kLanes ? 4 : 2;
  const int64_t unit =
      t.flat
          ? static_cast<int64_t>(14) * q.c * sizeof(typename A::Elem)  // bytes of input that a row brings
          : static_cast<int64_t>(q.stride_h) * q.w * q.c * sizeof(typename A::Elem) * (q.pool_r ? q.pool_stride_h : 1);
  const int64_t total = t.flat ? ceil_div(static_cast<int64_t>(q.n) * q.oh * q.ow, 14) : q.pool_r ? q.ph : q.oh;
  int64_t rows = kSlabBytes / (unit ? unit : 1);
  rows = rows < 1 ? 1 : rows > total ? total : rows;
  t.row_blocks = ceil_div(total, rows);
  const int images = t.flat ? 1 : q.n;
  // even work: a multiple of the threads where there are few tasks
  int64_t tasks = static_cast<int64_t>(images) * t.row_blocks;
  t.k_groups = 1;
  if (tasks < 4 * threads && tasks % threads) {
    if (t.row_blocks == 1 || tasks < threads) {
      const int blocks = ceil_div(q.k, t.vectors * kLanes);
      t.k_groups = q.pool_r ? 1 : blocks < threads ? blocks : threads;
    } else {
      t.row_blocks = round_up(t.row_blocks, threads);
    }
  }
  t.rows = ceil_div(total, t.row_blocks) * (t.flat ? 14 : 1);
  t.row_blocks = ceil_div(t.flat ? static_cast<int64_t>(q.n) * q.oh * q.ow : total, t.rows);
  t.tasks = static_cast<int64_t>(images) * t.row_blocks * t.k_groups;
  return t;
}

// `count` pixels of a row into NHWC order, `step` elements apart, zero where channels do not exist.
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

// The input rows [first, first + count) of one image, zero-padded: (count, width) pixels, `step` elements apart.
template <typename A>
void copy_slab(const DirectConv& q, int image, int first, int count, int width, int64_t step, typename A::Elem* slab) {
  using Elem = typename A::Elem;
  const Elem* x = static_cast<const Elem*>(q.x) + image * q.xn;
  const int left = q.pad_w, inside = q.w < width - left ? q.w : width - left;  // columns that exist
  for (int i = 0; i < count; ++i) {
    Elem* row = slab + i * width * step;
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

// max over the windows of `rows` conv rows, starting at conv row `first`, into pooled rows [p0, p1).
template <typename A>
void max_pool(const DirectConv& q, const typename A::Elem* conv, int first, int p0, int p1, typename A::Elem* out) {
  for (int p = p0; p < p1; ++p)
    for (int j = 0; j < q.pw; ++j)
      for (int k = 0; k < q.k; k += kLanes) {
        const __mmask16 mask = lanes_left(q.k - k);
        // every window meets at least one pixel (check_pool), and after ReLU the least value is 0
        __m512 best = _mm512_setzero_ps();
        for (int a = 0; a < q.pool_r; ++a)
          for (int b = 0; b < q.pool_s; ++b) {
            const int i = p * q.pool_stride_h - q.pool_pad_h + a, x = j * q.pool_stride_w - q.pool_pad_w + b;
            if (i < 0 || i >= q.oh || x < 0 || x >= q.ow) continue;
            const __m512 v = A::load(conv + (static_cast<int64_t>(i - first) * q.ow + x) * q.k + k, mask);
            // keeps a NaN that is already there, and takes a new one
            best = _mm512_mask_blend_ps(
                _mm512_cmp_ps_mask(v, best, _CMP_GT_OQ) | _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), best, v);
          }
        A::store(out + (static_cast<int64_t>(p) * q.pw + j) * q.k + k, best, mask);
      }
}

template <typename A>
class DirectTask {
  using Elem = typename A::Elem;

 public:
  DirectTask(const DirectConv& q, const DirectTiling& t) : q_(q), t_(t), slab_(needs_slab<A>(q)) {
    channels_ = slab_ ? round_up(q.c, A::kPack) : q.c;
    step_ = channels_ + (slab_ && aliases<A>(q, channels_) ? kLanes * A::kPack : 0);
    width_ = slab_ ? (q.ow - 1) * q.stride_w + (q.s - 1) * q.dil_w + 1 : q.w;
    const int64_t row = width_ * step_;
    // where pixels touch, a kernel row is one run of S * C values
    const bool whole_rows = q.dil_w == 1 && step_ == channels_;
    runs_.count = whole_rows ? q.r : q.r * q.s;
    runs_.steps = (whole_rows ? q.s * channels_ : channels_) / A::kPack;
    runs_.offset = offset_;
    for (int i = 0; i < runs_.count; ++i)
      offset_[i] = whole_rows ? i * q.dil_h * row : (i / q.s) * q.dil_h * row + (i % q.s) * q.dil_w * step_;
    reduction_ = static_cast<int64_t>(q.r) * q.s * channels_;
  }

  void run(int64_t task) {
    const int group = task % t_.k_groups, block = task / t_.k_groups % t_.row_blocks;
    const int image = static_cast<int>(task / t_.k_groups / t_.row_blocks);
    const int blocks = ceil_div(q_.k, t_.vectors * kLanes);
    const int k0 = static_cast<int64_t>(blocks) * group / t_.k_groups * t_.vectors * kLanes;
    const int k1 = static_cast<int64_t>(blocks) * (group + 1) / t_.k_groups * t_.vectors * kLanes;
    const int kend = k1 < q_.k ? k1 : q_.k;
    const int first = block * t_.rows;
    Elem* out = static_cast<Elem*>(q_.out);
    const Elem* residual = static_cast<const Elem*>(q_.residual);
    if (t_.flat) {
      const int64_t pixels = static_cast<int64_t>(q_.n) * q_.oh * q_.ow;
      const int count = static_cast<int>(first + t_.rows < pixels ? t_.rows : pixels - first);
      const int64_t at = static_cast<int64_t>(first) * q_.k;
      const Elem* x = static_cast<const Elem*>(q_.x) + static_cast<int64_t>(first) * q_.c;
      if (slab_) {
        Elem* slab = static_cast<Elem*>(slab_scratch_.get(count * step_ * sizeof(Elem)));
        copy_pixels<A>(q_, x, count, step_, slab);
        x = slab;
      }
      rows(x, 0, 1, count, k0, kend, residual ? residual + at : nullptr, out + at);
    } else if (q_.pool_r) {
      const int last = first + t_.rows < q_.ph ? first + t_.rows : q_.ph;
      int r0 = first * q_.pool_stride_h - q_.pool_pad_h, r1 = (last - 1) * q_.pool_stride_h - q_.pool_pad_h + q_.pool_r;
      r0 = r0 < 0 ? 0 : r0;
      r1 = r1 > q_.oh ? q_.oh : r1;
      Elem* conv = static_cast<Elem*>(pool_scratch_.get(static_cast<size_t>(r1 - r0) * q_.ow * q_.k * sizeof(Elem)));
      image_rows(image, r0, r1, k0, kend, nullptr, conv);
      max_pool<A>(q_, conv, r0, first, last, out + static_cast<int64_t>(image) * q_.ph * q_.pw * q_.k);
    } else {
      const int last = first + t_.rows < q_.oh ? first + t_.rows : q_.oh;
      const int64_t at = (static_cast<int64_t>(image) * q_.oh + first) * q_.ow * q_.k;
      image_rows(image, first, last, k0, kend, residual ? residual + at : nullptr, out + at);
    }
  }

 private:
  // Output rows [r0, r1) of an image; out and residual point at row r0.
  void image_rows(int image, int r0, int r1, int k0, int k1, const Elem* residual, Elem* out) {
    const int top = r0 * q_.stride_h - q_.pad_h;
    const Elem* x;
    if (slab_) {
      const int count = (r1 - r0 - 1) * q_.stride_h + (q_.r - 1) * q_.dil_h + 1;
      Elem* slab = static_cast<Elem*>(slab_scratch_.get(count * width_ * step_ * sizeof(Elem)));
      copy_slab<A>(q_, image, top, count, width_, step_, slab);
      x = slab;
    } else {
      x = static_cast<const Elem*>(q_.x) + image * q_.xn + top * q_.xh;
    }
    rows(x, q_.stride_h * width_ * step_, r1 - r0, q_.ow, k0, k1, residual, out, top);
  }

  // Output rows of `width` pixels; `top` is the input row under the first one's first tap.
  void rows(const Elem* x, int64_t row_step, int count, int width, int k0, int k1, const Elem* residual, Elem* out,
            int top = 0) {
    Tile tile{q_.stride_w * step_, runs_, nullptr, nullptr, q_.k, 0, q_.relu};
    for (int k = k0; k < k1;) {
      const int nv = block_vectors(q_.k, k, t_.vectors), tiles = ceil_div(width, widest_tile(nv));
      const Elem* w = static_cast<const Elem*>(q_.packed) + k * reduction_;
      tile.scale = q_.scale + k;
      tile.shift = q_.shift + k;
      tile.channels_left = q_.k - k;
      for (int i = 0; i < count; ++i) {
        // kernel rows that lie in the padding add nothing: at 7x7 they are a tenth of the work
        const int above = top + i * q_.stride_h;
        int tap0 = 0, tap1 = q_.r;
        while (tap0 < tap1 && above + tap0 * q_.dil_h < 0) ++tap0;
        while (tap1 > tap0 && above + (tap1 - 1) * q_.dil_h >= q_.h) --tap1;
        const int per_row = runs_.count / q_.r;
        tile.runs = {offset_ + tap0 * per_row, (tap1 - tap0) * per_row, runs_.steps};
        const Elem* taps = w + reduction_ / q_.r * tap0 * nv * kLanes;
        for (int j = 0; j < tiles; ++j) {
          // tiles of nearly one width: 15 pixels are 8 + 7, not 14 + 1
          const int from = static_cast<int>(static_cast<int64_t>(width) * j / tiles);
          const int mr = static_cast<int>(static_cast<int64_t>(width) * (j + 1) / tiles) - from;
          const int64_t at = (static_cast<int64_t>(i) * width + from) * q_.k + k;
          tile_fn<A>(mr, nv)(tile, x + i * row_step + from * tile.pixel_step, taps, residual ? residual + at : nullptr,
                             out + at);
        }
      }
      k += nv * kLanes;
    }
  }

  const DirectConv& q_;
  const DirectTiling& t_;
  const bool slab_;
  int channels_, width_;  // channels with the rounding up to kPack; columns of the slab or of x
  int64_t step_;          // elements between neighbouring pixels
  int64_t reduction_;
  Runs runs_;
  int64_t offset_[kMaxKernel];
  static thread_local Scratch slab_scratch_, pool_scratch_;
};

template <typename A>
thread_local Scratch DirectTask<A>::slab_scratch_;
template <typename A>
thread_local Scratch DirectTask<A>::pool_scratch_;

// (K, C, R, S) of any strides -> channel blocks, each [R][S][C rounded up / kPack][16 * vectors][kPack], zero where
// a channel does not exist.
template <typename A>
void pack(typename A::Elem* packed, const typename A::Elem* weight, const int64_t strides[4], int c, int k, int r,
          int s, int vectors) {
  using Elem = typename A::Elem;
  const int channels = round_up(c, A::kPack);
  const int64_t reduction = static_cast<int64_t>(r) * s * channels;
  for (int k0 = 0; k0 < k;) {
    const int block = block_vectors(k, k0, vectors) * kLanes;
    Elem* to = packed + k0 * reduction;
    for (int i = 0; i < r; ++i)
      for (int j = 0; j < s; ++j)
        for (int ch = 0; ch < channels; ch += A::kPack)
          for (int kk = 0; kk < block; ++kk)
            for (int e = 0; e < A::kPack; ++e)
              *to++ = k0 + kk < k && ch + e < c
                          ? weight[(k0 + kk) * strides[0] + (ch + e) * strides[1] + i * strides[2] + j * strides[3]]
                          : Elem(0);
    k0 += block;
  }
}

}  // namespace
}  // namespace resnet_fused::cpu::avx512
