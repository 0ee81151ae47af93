// The Winograd weight gradient. A is the element type of the tensors (register_block.h), F the tile size
// (winograd_transforms.h). Transformed values and their sums are float32.
#pragma once
#include "cpu/simd/register_block.h"
#include "cpu/simd/winograd_tile.h"
#include "cpu/winograd_gradient.h"

namespace resnet_fused::cpu::simd::winograd_gradient {

namespace {

constexpr int kVectors = 2;  // registers across the channels of grad
template <typename V>
constexpr int kBlock = kVectors * V::kLanes;

// Transformed values are stored as [point][kLanes channels][tile of the chunk][kLanes], so products read their operands
// front to back. Each point has one extra cache line, so that the 16 stores of a tile go to different L1 sets.
inline int64_t point_step(int channels, int chunk) { return static_cast<int64_t>(channels) * chunk + 16; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename V>
int blocks_of(const WinogradGradient& q) {
  return (q.k + kBlock<V> - 1) / kBlock<V>;
}

template <typename A, typename F>
void input_tile(const WinogradGradient& q, int64_t tile, float* to) {
  using V = typename A::V;
  using Reg = typename V::Reg;
  using Elem = typename A::Elem;
  constexpr int kTile = F::kTile;
  const int64_t step = point_step(q.c, q.chunk);
  const Elem* p[kTile][kTile];
  pixels_of<F>(q, tile, p);
  typename V::Mask inside[kTile][kTile];
  for (int i = 0; i < kTile; ++i)
    for (int j = 0; j < kTile; ++j) {
      inside[i][j] = V::first(p[i][j] ? V::kLanes : 0);
      if (!p[i][j]) p[i][j] = static_cast<const Elem*>(q.x);  // a masked load from null takes hundreds of cycles
    }
  for (int c = 0; c < q.c; c += V::kLanes, to += static_cast<int64_t>(q.chunk) * V::kLanes) {
    const auto store = [&](int point, Reg v) { V::store(to + point * step, v); };
    if (!q.scale) {
      transform_tile<F>([&](int i, int j) { return A::load(p[i][j] + c, inside[i][j]); }, store);
      continue;
    }
    const Reg scale = V::load(q.scale + c), shift = V::load(q.shift + c);
    transform_tile<F>(
        [&](int i, int j) {
          const Reg v = A::round(V::fmadd(A::load(p[i][j] + c, inside[i][j]), scale, shift));
          return V::keep(inside[i][j], relu<V>(v));
        },
        store);
  }
}

// Transforms `width` channels from k on
template <typename A, typename F>
void grad_tile(const WinogradGradient& q, int64_t tile, int k, int width, float* to) {
  using V = typename A::V;
  using Reg = typename V::Reg;
  constexpr int kOut = F::kOut, kTile = F::kTile;
  const int64_t step = point_step(width, q.chunk);
  const Place at = place_of<F>(q, tile);
  const auto* grad = static_cast<const typename A::Elem*>(q.grad);
  int64_t from[kOut][kOut];
  typename V::Mask inside[kOut][kOut];
  for (int i = 0; i < kOut; ++i)
    for (int j = 0; j < kOut; ++j) {
      const bool is = at.y + i < q.oh && at.x + j < q.ow;
      inside[i][j] = V::first(is ? V::kLanes : 0);
      from[i][j] = is ? ((at.image * q.oh + at.y + i) * q.ow + at.x + j) * q.k + k : 0;
    }
  for (int c = 0; c < width; c += V::kLanes, to += static_cast<int64_t>(q.chunk) * V::kLanes) {
    Reg half[kTile][kOut];  // dy A^T, one column at a time
#pragma GCC unroll 4
    for (int i = 0; i < kOut; ++i) {
      Reg dy[kOut], m[kTile];
#pragma GCC unroll 4
      for (int j = 0; j < kOut; ++j) dy[j] = A::load(grad + from[i][j] + c, inside[i][j]);
      F::grad(dy, m);
#pragma GCC unroll 6
      for (int j = 0; j < kTile; ++j) half[j][i] = m[j];
    }
#pragma GCC unroll 6
    for (int j = 0; j < kTile; ++j) {
      Reg m[kTile];
      F::grad(half[j], m);
#pragma GCC unroll 6
      for (int i = 0; i < kTile; ++i) V::store(to + (i * kTile + j) * step, m[i]);
    }
  }
}

// sums[kGradientRows channels of x][NV registers of grad] += sum of products over `count` tiles. Accumulates in
// registers first: the rounding error of a running sum grows with its length.
template <typename V, int NV>
void multiply(const float* x, const float* grad, int64_t next, int count, bool first, float* sums) {
  using Reg = typename V::Reg;
  constexpr int kRows = V::kGradientRows;
  Reg acc[kRows][NV];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[m][v] = V::zero();
  for (int t = 0; t < count; ++t, x += V::kLanes, grad += V::kLanes) {
    Reg g[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) g[v] = V::load(grad + v * next);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const Reg one = V::set1(x[m]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[m][v] = V::fmadd(one, g[v], acc[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      float* to = sums + m * kBlock<V> + v * V::kLanes;
      V::store(to, first ? acc[m][v] : V::load(to) + acc[m][v]);
    }
}

// The sums of a part are stored as [point][kBlock channels of grad][channel of x][kBlock].
template <typename V>
float* sums_of(const WinogradGradient& q, int part, int point, int block) {
  return q.sums + part * q.part_floats + (static_cast<int64_t>(point) * blocks_of<V>(q) + block) * q.c * kBlock<V>;
}

// Adds the products of `count` transformed tiles to the sums of blocks [b0, b1). first: these are the part's first
// tiles.
template <typename V, typename F>
void multiply_chunk(const WinogradGradient& q, const float* inputs, const float* grads, int part, int count, bool first,
                    int b0, int b1, int width) {
  const int64_t next = static_cast<int64_t>(q.chunk) * V::kLanes;
  for (int point = 0; point < kPoints<F>;
       ++point, inputs += point_step(q.c, q.chunk), grads += point_step(width, q.chunk))
    for (int b = b0; b < b1; ++b) {
      const float* grad = grads + (b - b0) * kVectors * next;
      float* sums = sums_of<V>(q, part, point, b);
      const auto run = (b + 1) * kBlock<V> <= q.k ? multiply<V, kVectors> : multiply<V, 1>;
      for (int c = 0; c < q.c; c += V::kGradientRows)
        for (int t = 0; t < count; t += q.run)
          run(inputs + c / V::kLanes * next + c % V::kLanes + t * V::kLanes, grad + t * V::kLanes, next,
              static_cast<int>(smaller(q.run, count - t)), first && t == 0, sums + c * kBlock<V>);
    }
}

thread_local Scratch scratch;

template <typename A, typename F>
void run_task(const WinogradGradient& q, int64_t task) {
  using V = typename A::V;
  constexpr int kChannels = kBlock<V>;
  const int part = static_cast<int>(task / q.groups), group = static_cast<int>(task % q.groups);
  const int b0 = blocks_of<V>(q) * group / q.groups, b1 = blocks_of<V>(q) * (group + 1) / q.groups;
  const int width = static_cast<int>(smaller(q.k, b1 * kChannels)) - b0 * kChannels;
  const int64_t begin = q.tiles * part / q.parts, end = q.tiles * (part + 1) / q.parts;
  const int64_t input_floats = kPoints<F> * point_step(q.c, q.chunk);
  float* inputs =
      static_cast<float*>(scratch.get((input_floats + kPoints<F> * point_step(width, q.chunk)) * sizeof(float)));
  float* grads = inputs + input_floats;
  for (int64_t first = begin; first < end; first += q.chunk) {
    const int count = static_cast<int>(smaller(q.chunk, end - first));
    for (int t = 0; t < count; ++t) {
      input_tile<A, F>(q, first + t, inputs + t * V::kLanes);
      grad_tile<A, F>(q, first + t, b0 * kChannels, width, grads + t * V::kLanes);
    }
    multiply_chunk<V, F>(q, inputs, grads, part, count, first == begin, b0, b1, width);
  }
}

// Total of a point over all parts, for the register of sums at offset `at` of a block
template <typename V>
typename V::Reg total(const WinogradGradient& q, int point, int block, int64_t at) {
  typename V::Reg v = V::load(sums_of<V>(q, 0, point, block) + at);
  for (int part = 1; part < q.parts; ++part) v += V::load(sums_of<V>(q, part, point, block) + at);
  return v;
}

template <typename V, typename F>
void winograd_gradient_tiling(WinogradGradient& q, int threads) {
  count_tiles<F>(q);
  q.part_floats = static_cast<int64_t>(kPoints<F>) * blocks_of<V>(q) * q.c * kBlock<V>;
  // Parts, runs and chunks fix the order of summation. They depend only on the shape, so results are bit-identical for
  // any number of threads. A part must be large enough to justify writing and re-reading its sums.
  constexpr int64_t kSumBytes = 16 << 20, kMostParts = 16, kTilesOfPart = 768;
  const int64_t fit = kSumBytes / (q.part_floats * static_cast<int64_t>(sizeof(float)));
  const int64_t worth = smaller(smaller(fit, kMostParts), q.tiles / kTilesOfPart);
  for (q.parts = 1; 2 * q.parts <= worth;) q.parts *= 2;
  const int64_t of_part = (q.tiles + q.parts - 1) / q.parts;
  q.run = of_part < 1024 ? 32 : 64;
  // The operands of a chunk stay in L2, unless the chunk would be so small that reading the sums dominates.
  constexpr int64_t kBytes = 512 << 10, kLeast = 64;
  const int64_t most = kBytes / (kPoints<F> * static_cast<int64_t>(sizeof(float)) * (q.c + q.k));
  q.chunk = static_cast<int>(smaller(of_part, most < kLeast ? kLeast : most / kLeast * kLeast));
  // Each group repeats the input transform, so use only enough groups to keep all threads busy.
  q.groups = 1;
  while (q.parts * q.groups < 4 * threads && q.parts * q.groups % threads && q.groups < blocks_of<V>(q)) ++q.groups;
  q.tasks = static_cast<int64_t>(q.parts) * q.groups;
}

template <typename A, typename F>
void winograd_gradient_sum(const WinogradGradient& q, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) run_task<A, F>(q, task);
}

template <typename A, typename F>
bool winograd_gradient_finish(const WinogradGradient& q, void* weight, const int64_t strides[4], int64_t begin,
                              int64_t end) {
  using V = typename A::V;
  using Reg = typename V::Reg;
  constexpr int kTile = F::kTile, kChannels = kBlock<V>;
  auto* g = static_cast<typename A::Elem*>(weight);
  typename V::Flags bad{};
  for (int k = 0; k < q.k; k += V::kLanes)
    for (int64_t c = begin; c < end; ++c) {
      const int block = k / kChannels;
      const int64_t at = c * kChannels + k % kChannels;
      Reg half[3][kTile];  // G^T u
#pragma GCC unroll 6
      for (int j = 0; j < kTile; ++j) {
        Reg u[kTile], dg[3];
#pragma GCC unroll 6
        for (int i = 0; i < kTile; ++i) u[i] = total<V>(q, i * kTile + j, block, at);
        F::filter_grad(u, dg);
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) half[i][j] = dg[i];
      }
      alignas(64) typename A::Elem of_taps[3][3][V::kLanes];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        Reg row[3];
        F::filter_grad(half[i], row);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          A::store(of_taps[i][j], row[j], V::first(V::kLanes));
          bad |= V::not_finite(row[j]);
        }
      }
      for (int lane = 0; lane < V::kLanes; ++lane)
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j)
            g[(k + lane) * strides[0] + c * strides[1] + i * strides[2] + j * strides[3]] = of_taps[i][j][lane];
    }
  return !V::any(bad);
}

template <typename A, typename F>
constexpr WinogradGradientKernels kKernels = {winograd_gradient_tiling<typename A::V, F>, winograd_gradient_sum<A, F>,
                                              winograd_gradient_finish<A, F>};

}  // namespace
}  // namespace resnet_fused::cpu::simd::winograd_gradient
