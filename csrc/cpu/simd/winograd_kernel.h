// The Winograd convolution. A is the element type of the tensors (register_block.h), F the tile size
// (winograd_transforms.h), Sum the type of float32 products. Transformed values and their products are float32.
#pragma once
#include <utility>

#include "cpu/simd/register_block.h"
#include "cpu/simd/winograd_tile.h"
#include "cpu/winograd.h"

namespace resnet_fused::cpu::simd::winograd {

namespace {

constexpr int kVectors = 2;  // registers across channels
template <typename A>
constexpr int kBlock = kVectors * A::V::kLanes;
template <typename A>
constexpr int kMr = A::V::kPixels;          // tiles per register block
constexpr int64_t kInputBytes = 256 << 10;  // transformed inputs per task; they share L2 with weights and products

// Rows a multiple of 1 KiB apart map to few L1 sets; one extra cache line per row spreads them.
inline int row_step(int c) { return c % 256 ? c : c + 16; }

// Transforms tile t, zero outside the image: B^T d B into v[point][tile][channel].
template <typename A, typename F>
void input_tile(const WinogradConv& q, int64_t t, const typename A::Elem* zeros, float* v, int64_t point_step) {
  const typename A::Elem* p[F::kTile][F::kTile];
  pixels_of<F>(q, t, p);
  for (auto& row : p)
    for (auto& pixel : row) pixel = pixel ? pixel : zeros;
  using V = typename A::V;
  for (int c = 0; c < q.c; c += V::kLanes)
    transform_tile<F>([&](int i, int j) { return A::load(p[i][j] + c, V::first(V::kLanes)); },
                      [&](int point, typename V::Reg value) { V::store(v + point * point_step + c, value); });
}

// products[tile][kBlock] = v[tile][channel] * u[channel][kBlock] for MR tiles. Prefetches next_count floats from
// `next`.
template <typename Sum, int MR>
void multiply(const float* v, int64_t step, int c, const float* u, const float* next, int64_t next_count,
              float* products) {
  using V = typename Sum::V;
  typename V::Reg acc[MR][kVectors];
  const int64_t start = 0;
  accumulate<Sum, MR, kVectors>(acc, v, {step, 0},
                                Runs{&start, 1, c, reinterpret_cast<const char*>(next), next_count * 4 / c}, u);
#pragma GCC unroll 14
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) V::store(products + m * kBlock<Sum> + i * V::kLanes, acc[m][i]);
}

using MultiplyFn = void (*)(const float*, int64_t, int, const float*, const float*, int64_t, float*);

// Instances of multiply with 1, 2, ... tiles.
template <typename Sum, int... I>
MultiplyFn multiply_of(int tiles, std::integer_sequence<int, I...>) {
  static constexpr MultiplyFn instances[] = {multiply<Sum, I + 1>...};
  return instances[tiles - 1];
}

// A^T m A for one tile and a register of channels, then scale, shift, residual, ReLU, store. Returns the flags of lanes
// that are not finite.
template <typename A, typename F>
inline typename A::V::Flags output_tile(const WinogradConv& q, int64_t t, const float* m, int64_t point_step, int k) {
  using V = typename A::V;
  using Reg = typename V::Reg;
  using Elem = typename A::Elem;
  constexpr typename V::Mask kAll = V::first(V::kLanes);
  const Place at = place_of<F>(q, t);
  Reg half[F::kOut][F::kTile];
#pragma GCC unroll 6
  for (int j = 0; j < F::kTile; ++j) {
    Reg column[F::kTile], y[F::kOut];
#pragma GCC unroll 6
    for (int i = 0; i < F::kTile; ++i) column[i] = V::load(m + (i * F::kTile + j) * point_step);
    F::output(column, y);
#pragma GCC unroll 4
    for (int i = 0; i < F::kOut; ++i) half[i][j] = y[i];
  }
  const Reg scale = V::load(q.scale + k), shift = V::load(q.shift + k);
  const Elem* residual = static_cast<const Elem*>(q.residual);
  Elem* out = static_cast<Elem*>(q.out);
  typename V::Flags bad{};
#pragma GCC unroll 4
  for (int i = 0; i < F::kOut; ++i) {
    const int oh = at.y + i;
    if (oh >= q.oh) break;
    Reg y[F::kOut];
    F::output(half[i], y);
#pragma GCC unroll 4
    for (int j = 0; j < F::kOut; ++j) {
      const int ow = at.x + j;
      if (ow >= q.ow) break;
      const int64_t to = ((at.image * q.oh + oh) * q.ow + ow) * q.k + k;
      Reg v = V::fmadd(y[j], scale, shift);
      bad |= V::not_finite(v);
      if (residual) v += A::load(residual + to, kAll);
      if (q.relu) v = relu<V>(v);
      A::store(out + to, v, kAll);
    }
  }
  return bad;
}

thread_local Scratch input_scratch, product_scratch;

template <typename A, typename F, typename Sum>
bool run_task(const WinogradConv& q, int64_t task) {
  using V = typename A::V;
  using Elem = typename A::Elem;
  const int group = task % q.k_groups;
  const int64_t first = task / q.k_groups * q.chunk;
  const int count = static_cast<int>(first + q.chunk < q.tiles ? q.chunk : q.tiles - first);
  const int blocks = (q.k + kBlock<A> - 1) / kBlock<A>;
  const int b0 = static_cast<int>(static_cast<int64_t>(blocks) * group / q.k_groups);
  const int b1 = static_cast<int>(static_cast<int64_t>(blocks) * (group + 1) / q.k_groups);

  const int step = row_step(q.c);
  const int64_t v_point = static_cast<int64_t>(count) * step, m_point = static_cast<int64_t>(count) * kBlock<A>;
  float* v = static_cast<float*>(input_scratch.get((kPoints<F> * v_point + q.c) * sizeof(float)));
  Elem* zeros = reinterpret_cast<Elem*>(v + kPoints<F> * v_point);
  for (int c = 0; c < q.c; ++c) zeros[c] = 0;
  for (int i = 0; i < count; ++i) input_tile<A, F>(q, first + i, zeros, v + static_cast<int64_t>(i) * step, v_point);

  float* products = static_cast<float*>(product_scratch.get(kPoints<F> * m_point * sizeof(float)));
  const int rows = (count + kMr<A> - 1) / kMr<A>;
  const auto sizes = std::make_integer_sequence<int, kMr<A>>();
  typename V::Flags bad{};
  for (int b = b0; b < b1; ++b) {
    const float* u = q.packed + static_cast<int64_t>(b) * kPoints<F> * q.c * kBlock<A>;
    const int64_t panel = static_cast<int64_t>(q.c) * kBlock<A>, share = panel / rows;
    for (int p = 0; p < kPoints<F>; ++p)
      for (int r = 0; r < rows; ++r) {
        const int from = count * r / rows, mr = count * (r + 1) / rows - from;
        const float* of_point = u + p * panel;
        multiply_of<Sum>(mr, sizes)(v + p * v_point + static_cast<int64_t>(from) * step, step, q.c, of_point,
                                    of_point + panel + r * share, share, products + p * m_point + from * kBlock<A>);
      }
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < kVectors; ++j) {
        const int k = b * kBlock<A> + j * V::kLanes;
        if (k < q.k) bad |= output_tile<A, F>(q, first + i, products + i * kBlock<A> + j * V::kLanes, m_point, k);
      }
  }
  return !V::any(bad);
}

template <typename A, typename F>
void winograd_tiling(WinogradConv& q, int threads) {
  count_tiles<F>(q);
  // few tiles re-read the weights often; many overflow L2
  constexpr int64_t kFewest = 28 / kMr<A> * kMr<A>, kMost = 112 / kMr<A> * kMr<A>;
  int64_t most = kInputBytes / (kPoints<F> * sizeof(float) * q.c);
  most = most < kFewest ? kFewest : most > kMost ? kMost : most / kMr<A> * kMr<A>;
  int64_t chunks = (q.tiles + most - 1) / most;
  q.k_groups = 1;
  if (chunks < threads) {
    const int blocks = (q.k + kBlock<A> - 1) / kBlock<A>;
    q.k_groups = blocks < threads ? blocks : threads;
  } else if (chunks < 8 * threads) {
    chunks = (chunks + threads - 1) / threads * threads;
  }
  q.chunk = static_cast<int>((q.tiles + chunks - 1) / chunks);
  q.tasks = (q.tiles + q.chunk - 1) / q.chunk * q.k_groups;
}

// G g along one axis (three taps), for a block of filters
template <typename F, int kCount>
inline void transform_filters(const typename F::Weight (&g)[3][kCount], typename F::Weight (&to)[F::kTile][kCount]) {
  for (int i = 0; i < kCount; ++i) {
    typename F::Weight u[F::kTile];
    F::filter({g[0][i], g[1][i], g[2][i]}, u);
    for (int j = 0; j < F::kTile; ++j) to[j][i] = u[j];
  }
}

// Reads a value of `count` filters, at most kBlock, `step` elements apart. Where filters are adjacent, as in an input
// gradient, channels are so far apart that processors do not prefetch them: `channel_step` is the distance.
template <typename A, typename Weight>
inline void read_filters(const typename A::Elem* from, int64_t step, int count, int64_t channel_step,
                         Weight (&to)[kBlock<A>]) {
  using V = typename A::V;
  constexpr int kChannelsAhead = 4, kLine = 64 / sizeof *from;
  if (step == 1 && count == kBlock<A>) {
    float values[kBlock<A>];
    for (int v = 0; v < kVectors; ++v)
      V::store(values + v * V::kLanes, A::load(from + v * V::kLanes, V::first(V::kLanes)));
    for (int kk = 0; kk < kBlock<A>; ++kk) to[kk] = values[kk];
    for (int kk = 0; kk < kBlock<A>; kk += kLine) __builtin_prefetch(from + kChannelsAhead * channel_step + kk);
  } else {
    for (int kk = 0; kk < count; ++kk) to[kk] = A::value(from[kk * step]);
  }
}

// Packs (K, C, 3, 3) of any strides: G g G^T as [block of kBlock channels][point][C][kBlock]
template <typename A, typename F>
void winograd_pack(float* packed, const void* weight, const int64_t strides[4], int c, int k, int64_t begin,
                   int64_t end) {
  constexpr int kTile = F::kTile, kCount = kBlock<A>;
  const auto* g = static_cast<const typename A::Elem*>(weight);
  for (int64_t block = begin; block < end; ++block)
    for (int ch = 0; ch < c; ++ch) {
      typename F::Weight columns[3][3][kCount] = {}, half[3][kTile][kCount], u[kTile][kCount], row[3][kCount];
      const int64_t left = k - block * kCount;
      for (int j = 0; j < 3; ++j) {
        for (int i = 0; i < 3; ++i) {
          const auto* from = g + block * kCount * strides[0] + ch * strides[1] + i * strides[2] + j * strides[3];
          read_filters<A>(from, strides[0], static_cast<int>(left < kCount ? left : kCount), strides[1], columns[j][i]);
        }
        transform_filters<F>(columns[j], half[j]);
      }
      for (int i = 0; i < kTile; ++i) {
        for (int j = 0; j < 3; ++j) __builtin_memcpy(row[j], half[j][i], sizeof row[j]);
        transform_filters<F>(row, u);
        for (int j = 0; j < kTile; ++j) {
          float* to = packed + ((block * kPoints<F> + i * kTile + j) * c + ch) * kCount;
          for (int kk = 0; kk < kCount; ++kk) to[kk] = static_cast<float>(u[j][kk]);
        }
      }
    }
}

template <typename A, typename F, typename Sum>
bool winograd_run(const WinogradConv& conv, int64_t begin, int64_t end) {
  bool finite = true;
  for (int64_t i = begin; i < end; ++i) finite = run_task<A, F, Sum>(conv, i) && finite;
  return finite;
}

template <typename A, typename F, typename Sum>
constexpr WinogradKernels kKernels = {kPoints<F>, kBlock<A>, winograd_tiling<A, F>, winograd_pack<A, F>,
                                      winograd_run<A, F, Sum>};

}  // namespace
}  // namespace resnet_fused::cpu::simd::winograd
