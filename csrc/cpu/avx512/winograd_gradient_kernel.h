// The Winograd weight gradient. A is the element type of the tensors (micro_kernel.h), F the tile size
// (winograd_transforms.h). Transformed values and their sums are float32. Everything here is static: files below
// avx512/ must not leave AVX-512 code in symbols that the linker could share with the rest of the library.
#pragma once
#include "cpu/avx512/micro_kernel.h"
#include "cpu/avx512/winograd_tile.h"
#include "cpu/winograd_gradient.h"

namespace resnet_fused::cpu::avx512 {

namespace {

constexpr int kRows = 8;     // channels of x per register block
constexpr int kVectors = 2;  // registers across the channels of grad
constexpr int kBlock = kVectors * kLanes;

// Transformed values are stored as [point][16 channels][tile of the chunk][16], so products read their operands front
// to back. Each point has one extra vector, so that the 16 stores of a tile go to different L1 sets.
inline int64_t point_step(int channels, int chunk) { return static_cast<int64_t>(channels) * chunk + kLanes; }

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int blocks_of(const WinogradGradient& q) { return (q.k + kBlock - 1) / kBlock; }

template <typename A, typename F>
void input_tile(const WinogradGradient& q, int64_t tile, float* to) {
  constexpr int kTile = F::kTile;
  using Elem = typename A::Elem;
  const int64_t step = point_step(q.c, q.chunk);
  const Elem* p[kTile][kTile];
  pixels_of<F>(q, tile, p);
  __mmask16 inside[kTile][kTile];
  for (int i = 0; i < kTile; ++i)
    for (int j = 0; j < kTile; ++j) {
      inside[i][j] = p[i][j] ? 0xffff : 0;
      if (!p[i][j]) p[i][j] = static_cast<const Elem*>(q.x);  // a masked load from null takes hundreds of cycles
    }
  for (int c = 0; c < q.c; c += kLanes, to += static_cast<int64_t>(q.chunk) * kLanes) {
    const auto store = [&](int point, __m512 v) { _mm512_storeu_ps(to + point * step, v); };
    if (!q.scale) {
      transform_tile<F>([&](int i, int j) { return A::load(p[i][j] + c, inside[i][j]); }, store);
      continue;
    }
    const __m512 scale = _mm512_loadu_ps(q.scale + c), shift = _mm512_loadu_ps(q.shift + c);
    transform_tile<F>(
        [&](int i, int j) {
          const __m512 v = A::round(_mm512_fmadd_ps(A::load(p[i][j] + c, inside[i][j]), scale, shift));
          // Propagates NaN: max returns its second operand if either is NaN.
          return _mm512_maskz_max_ps(inside[i][j], _mm512_setzero_ps(), v);
        },
        store);
  }
}

// Transforms `width` channels from k on
template <typename A, typename F>
void grad_tile(const WinogradGradient& q, int64_t tile, int k, int width, float* to) {
  constexpr int kOut = F::kOut, kTile = F::kTile;
  const int64_t step = point_step(width, q.chunk);
  const Place at = place_of<F>(q, tile);
  const auto* grad = static_cast<const typename A::Elem*>(q.grad);
  int64_t from[kOut][kOut];
  __mmask16 inside[kOut][kOut];
  for (int i = 0; i < kOut; ++i)
    for (int j = 0; j < kOut; ++j) {
      const bool is = at.y + i < q.oh && at.x + j < q.ow;
      inside[i][j] = is ? 0xffff : 0;
      from[i][j] = is ? ((at.image * q.oh + at.y + i) * q.ow + at.x + j) * q.k + k : 0;
    }
  for (int c = 0; c < width; c += kLanes, to += static_cast<int64_t>(q.chunk) * kLanes) {
    __m512 half[kTile][kOut];  // dy A^T, one column at a time
#pragma GCC unroll 4
    for (int i = 0; i < kOut; ++i) {
      __m512 dy[kOut], m[kTile];
#pragma GCC unroll 4
      for (int j = 0; j < kOut; ++j) dy[j] = A::load(grad + from[i][j] + c, inside[i][j]);
      F::grad(dy, m);
#pragma GCC unroll 6
      for (int j = 0; j < kTile; ++j) half[j][i] = m[j];
    }
#pragma GCC unroll 6
    for (int j = 0; j < kTile; ++j) {
      __m512 m[kTile];
      F::grad(half[j], m);
#pragma GCC unroll 6
      for (int i = 0; i < kTile; ++i) _mm512_storeu_ps(to + (i * kTile + j) * step, m[i]);
    }
  }
}

// sums[8 channels of x][NV * 16 of grad] += sum of products over `count` tiles. Accumulates in registers first: the
// rounding error of a running sum grows with its length.
template <int NV>
void multiply(const float* x, const float* grad, int64_t next, int count, bool first, float* sums) {
  __m512 acc[kRows][NV];
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_setzero_ps();
  for (int t = 0; t < count; ++t, x += kLanes, grad += kLanes) {
    __m512 g[NV];
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) g[v] = _mm512_loadu_ps(grad + v * next);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const __m512 one = _mm512_set1_ps(x[m]);
#pragma GCC unroll 2
      for (int v = 0; v < NV; ++v) acc[m][v] = _mm512_fmadd_ps(one, g[v], acc[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 2
    for (int v = 0; v < NV; ++v) {
      float* to = sums + m * kBlock + v * kLanes;
      _mm512_storeu_ps(to, first ? acc[m][v] : _mm512_add_ps(_mm512_loadu_ps(to), acc[m][v]));
    }
}

// The sums of a part are stored as [point][32 channels of grad][channel of x][32].
inline float* sums_of(const WinogradGradient& q, int part, int point, int block) {
  return q.sums + part * q.part_floats + (static_cast<int64_t>(point) * blocks_of(q) + block) * q.c * kBlock;
}

// Adds the products of `count` transformed tiles to the sums of blocks [b0, b1). first: these are the part's first
// tiles.
template <typename F>
void multiply_chunk(const WinogradGradient& q, const float* inputs, const float* grads, int part, int count, bool first,
                    int b0, int b1, int width) {
  const int64_t next = static_cast<int64_t>(q.chunk) * kLanes;
  for (int point = 0; point < kPoints<F>;
       ++point, inputs += point_step(q.c, q.chunk), grads += point_step(width, q.chunk))
    for (int b = b0; b < b1; ++b) {
      const float* grad = grads + (b - b0) * kVectors * next;
      float* sums = sums_of(q, part, point, b);
      const auto run = (b + 1) * kBlock <= q.k ? multiply<kVectors> : multiply<1>;
      for (int c = 0; c < q.c; c += kRows)
        for (int t = 0; t < count; t += q.run)
          run(inputs + c / kLanes * next + c % kLanes + t * kLanes, grad + t * kLanes, next,
              static_cast<int>(smaller(q.run, count - t)), first && t == 0, sums + c * kBlock);
    }
}

thread_local Scratch scratch;

template <typename A, typename F>
void run_task(const WinogradGradient& q, int64_t task) {
  const int part = static_cast<int>(task / q.groups), group = static_cast<int>(task % q.groups);
  const int b0 = blocks_of(q) * group / q.groups, b1 = blocks_of(q) * (group + 1) / q.groups;
  const int width = static_cast<int>(smaller(q.k, b1 * kBlock)) - b0 * kBlock;
  const int64_t begin = q.tiles * part / q.parts, end = q.tiles * (part + 1) / q.parts;
  const int64_t input_floats = kPoints<F> * point_step(q.c, q.chunk);
  float* inputs =
      static_cast<float*>(scratch.get((input_floats + kPoints<F> * point_step(width, q.chunk)) * sizeof(float)));
  float* grads = inputs + input_floats;
  for (int64_t first = begin; first < end; first += q.chunk) {
    const int count = static_cast<int>(smaller(q.chunk, end - first));
    for (int t = 0; t < count; ++t) {
      input_tile<A, F>(q, first + t, inputs + t * kLanes);
      grad_tile<A, F>(q, first + t, b0 * kBlock, width, grads + t * kLanes);
    }
    multiply_chunk<F>(q, inputs, grads, part, count, first == begin, b0, b1, width);
  }
}

// Total of a point over all parts, for the 16 sums at offset `at` of a block
inline __m512 total(const WinogradGradient& q, int point, int block, int64_t at) {
  __m512 v = _mm512_loadu_ps(sums_of(q, 0, point, block) + at);
  for (int part = 1; part < q.parts; ++part) v = _mm512_add_ps(v, _mm512_loadu_ps(sums_of(q, part, point, block) + at));
  return v;
}

template <typename F>
void winograd_gradient_tiling(WinogradGradient& q, int threads) {
  count_tiles<F>(q);
  q.part_floats = static_cast<int64_t>(kPoints<F>) * blocks_of(q) * q.c * kBlock;
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
  while (q.parts * q.groups < 4 * threads && q.parts * q.groups % threads && q.groups < blocks_of(q)) ++q.groups;
  q.tasks = static_cast<int64_t>(q.parts) * q.groups;
}

template <typename A, typename F>
void winograd_gradient_sum(const WinogradGradient& q, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) run_task<A, F>(q, task);
}

template <typename A, typename F>
bool winograd_gradient_finish(const WinogradGradient& q, void* weight, const int64_t strides[4], int64_t begin,
                              int64_t end) {
  constexpr int kTile = F::kTile;
  auto* g = static_cast<typename A::Elem*>(weight);
  __mmask16 bad = 0;
  for (int k = 0; k < q.k; k += kLanes)
    for (int64_t c = begin; c < end; ++c) {
      const int block = k / kBlock;
      const int64_t at = c * kBlock + k % kBlock;
      __m512 half[3][kTile];  // G^T u
#pragma GCC unroll 6
      for (int j = 0; j < kTile; ++j) {
        __m512 u[kTile], dg[3];
#pragma GCC unroll 6
        for (int i = 0; i < kTile; ++i) u[i] = total(q, i * kTile + j, block, at);
        F::filter_grad(u, dg);
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) half[i][j] = dg[i];
      }
      alignas(64) typename A::Elem of_taps[3][3][kLanes];
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        __m512 row[3];
        F::filter_grad(half[i], row);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          A::store(of_taps[i][j], row[j], 0xffff);
          bad |= _mm512_fpclass_ps_mask(row[j], 0x99);  // quiet and signalling NaN, +Inf, -Inf
        }
      }
      for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 3; ++i)
          for (int j = 0; j < 3; ++j)
            g[(k + lane) * strides[0] + c * strides[1] + i * strides[2] + j * strides[3]] = of_taps[i][j][lane];
    }
  return bad == 0;
}

template <typename A, typename F>
constexpr WinogradGradientKernels kWinogradGradientKernels = {winograd_gradient_tiling<F>, winograd_gradient_sum<A, F>,
                                                              winograd_gradient_finish<A, F>};

}  // namespace
}  // namespace resnet_fused::cpu::avx512
