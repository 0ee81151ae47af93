// The Winograd convolution. A is the element type of the tensors (micro_kernel.h), F the tile size
// (winograd_transforms.h). Transformed values and their products are float32. Everything here is static: files below
// avx512/ must not leave AVX-512 code in symbols that the linker could share with the rest of the library.
#pragma once
#include <cstdlib>

#include "cpu/avx512/micro_kernel.h"
#include "cpu/avx512/winograd_tile.h"
#include "cpu/winograd.h"

namespace resnet_fused::cpu::avx512 {

namespace {

constexpr int kVectors = 2;  // registers across channels
constexpr int kBlock = kVectors * kLanes;
constexpr int kMr = 14;                     // tiles per register block
constexpr int64_t kInputBytes = 256 << 10;  // transformed inputs per task; they share L2 with weights and products

// Rows a multiple of 1 KiB apart map to few L1 sets; one extra vector per row spreads them.
inline int row_step(int c) { return c % 256 ? c : c + kLanes; }

// Transforms tile t, zero outside the image: B^T d B into v[point][tile][channel].
template <typename A, typename F>
void input_tile(const WinogradConv& q, int64_t t, const typename A::Elem* zeros, float* v, int64_t point_step) {
  const typename A::Elem* p[F::kTile][F::kTile];
  pixels_of<F>(q, t, p);
  for (auto& row : p)
    for (auto& pixel : row) pixel = pixel ? pixel : zeros;
  for (int c = 0; c < q.c; c += kLanes)
    transform_tile<F>([&](int i, int j) { return A::load(p[i][j] + c, 0xffff); },
                      [&](int point, __m512 value) { _mm512_storeu_ps(v + point * point_step + c, value); });
}

// products[tile][kBlock] = v[tile][channel] * u[channel][kBlock] for MR tiles
template <int MR>
void multiply(const float* v, int64_t step, int c, const float* u, float* products) {
  __m512 acc[MR][kVectors];
  const int64_t start = 0;
  accumulate<Fp32, MR, kVectors>(acc, v, step, Runs{&start, 1, c}, u);
#pragma GCC unroll 14
  for (int m = 0; m < MR; ++m)
#pragma GCC unroll 2
    for (int i = 0; i < kVectors; ++i) _mm512_storeu_ps(products + m * kBlock + i * kLanes, acc[m][i]);
}

using MultiplyFn = void (*)(const float*, int64_t, int, const float*, float*);
constexpr MultiplyFn kMultiply[kMr] = {multiply<1>,  multiply<2>,  multiply<3>,  multiply<4>, multiply<5>,
                                       multiply<6>,  multiply<7>,  multiply<8>,  multiply<9>, multiply<10>,
                                       multiply<11>, multiply<12>, multiply<13>, multiply<14>};

// A^T m A for one tile and 16 channels, then scale, shift, residual, ReLU, store. Returns the mask of lanes that are
// not finite.
template <typename A, typename F>
inline __mmask16 output_tile(const WinogradConv& q, int64_t t, const float* m, int64_t point_step, int k,
                             __mmask16 lanes) {
  using Elem = typename A::Elem;
  const Place at = place_of<F>(q, t);
  __m512 half[F::kOut][F::kTile];
#pragma GCC unroll 6
  for (int j = 0; j < F::kTile; ++j) {
    __m512 column[F::kTile], y[F::kOut];
#pragma GCC unroll 6
    for (int i = 0; i < F::kTile; ++i) column[i] = _mm512_loadu_ps(m + (i * F::kTile + j) * point_step);
    F::output(column, y);
#pragma GCC unroll 4
    for (int i = 0; i < F::kOut; ++i) half[i][j] = y[i];
  }
  const __m512 scale = _mm512_maskz_loadu_ps(lanes, q.scale + k), shift = _mm512_maskz_loadu_ps(lanes, q.shift + k);
  const Elem* residual = static_cast<const Elem*>(q.residual);
  Elem* out = static_cast<Elem*>(q.out);
  __mmask16 bad = 0;
#pragma GCC unroll 4
  for (int i = 0; i < F::kOut; ++i) {
    const int oh = at.y + i;
    if (oh >= q.oh) break;
    __m512 y[F::kOut];
    F::output(half[i], y);
#pragma GCC unroll 4
    for (int j = 0; j < F::kOut; ++j) {
      const int ow = at.x + j;
      if (ow >= q.ow) break;
      const int64_t to = ((at.image * q.oh + oh) * q.ow + ow) * q.k + k;
      __m512 v = _mm512_fmadd_ps(y[j], scale, shift);
      bad |= _mm512_mask_fpclass_ps_mask(lanes, v, 0x99);  // quiet and signalling NaN, +Inf, -Inf
      if (residual) v = add(v, A::load(residual + to, lanes));
      if (q.relu) v = relu(v);
      A::store(out + to, v, lanes);
    }
  }
  return bad;
}

thread_local Scratch input_scratch, product_scratch;

template <typename A, typename F>
bool run_task(const WinogradConv& q, int64_t task) {
  using Elem = typename A::Elem;
  const int group = task % q.k_groups;
  const int64_t first = task / q.k_groups * q.chunk;
  const int count = static_cast<int>(first + q.chunk < q.tiles ? q.chunk : q.tiles - first);
  const int blocks = (q.k + kBlock - 1) / kBlock;
  const int b0 = static_cast<int>(static_cast<int64_t>(blocks) * group / q.k_groups);
  const int b1 = static_cast<int>(static_cast<int64_t>(blocks) * (group + 1) / q.k_groups);

  const int step = row_step(q.c);
  const int64_t v_point = static_cast<int64_t>(count) * step, m_point = static_cast<int64_t>(count) * kBlock;
  float* v = static_cast<float*>(input_scratch.get((kPoints<F> * v_point + q.c) * sizeof(float)));
  Elem* zeros = reinterpret_cast<Elem*>(v + kPoints<F> * v_point);
  for (int c = 0; c < q.c; ++c) zeros[c] = 0;
  for (int i = 0; i < count; ++i) input_tile<A, F>(q, first + i, zeros, v + static_cast<int64_t>(i) * step, v_point);

  float* products = static_cast<float*>(product_scratch.get(kPoints<F> * m_point * sizeof(float)));
  const int rows = (count + kMr - 1) / kMr;
  __mmask16 bad = 0;
  for (int b = b0; b < b1; ++b) {
    const float* u = q.packed + static_cast<int64_t>(b) * kPoints<F> * q.c * kBlock;
    for (int p = 0; p < kPoints<F>; ++p)
      for (int r = 0; r < rows; ++r) {
        const int from = count * r / rows, mr = count * (r + 1) / rows - from;
        kMultiply[mr - 1](v + p * v_point + static_cast<int64_t>(from) * step, step, q.c,
                          u + static_cast<int64_t>(p) * q.c * kBlock, products + p * m_point + from * kBlock);
      }
    for (int i = 0; i < count; ++i)
      for (int j = 0; j < kVectors; ++j) {
        const int k = b * kBlock + j * kLanes;
        if (k < q.k)
          bad |= output_tile<A, F>(q, first + i, products + i * kBlock + j * kLanes, m_point, k, lanes_left(q.k - k));
      }
  }
  return bad == 0;
}

template <typename F>
void winograd_tiling(WinogradConv& q, int threads) {
  count_tiles<F>(q);
  // few tiles re-read the weights often; many overflow L2
  int64_t most = kInputBytes / (kPoints<F> * sizeof(float) * q.c);
  most = most < 2 * kMr ? 2 * kMr : most > 8 * kMr ? 8 * kMr : most / kMr * kMr;
  int64_t chunks = (q.tiles + most - 1) / most;
  q.k_groups = 1;
  if (chunks < threads) {
    const int blocks = (q.k + kBlock - 1) / kBlock;
    q.k_groups = blocks < threads ? blocks : threads;
  } else if (chunks < 8 * threads) {
    chunks = (chunks + threads - 1) / threads * threads;
  }
  q.chunk = static_cast<int>((q.tiles + chunks - 1) / chunks);
  q.tasks = (q.tiles + q.chunk - 1) / q.chunk * q.k_groups;
}

// G g along one axis (three taps), for a block of filters
template <typename F>
inline void transform_filters(const typename F::Weight (&g)[3][kBlock], typename F::Weight (&to)[F::kTile][kBlock]) {
  for (int i = 0; i < kBlock; ++i) {
    typename F::Weight u[F::kTile];
    F::filter({g[0][i], g[1][i], g[2][i]}, u);
    for (int j = 0; j < F::kTile; ++j) to[j][i] = u[j];
  }
}

// Packs (K, C, 3, 3) of any strides: G g G^T as [block of kBlock channels][point][C][kBlock]
template <typename A, typename F>
void winograd_pack(float* packed, const void* weight, const int64_t strides[4], int c, int k, int64_t begin,
                   int64_t end) {
  constexpr int kTile = F::kTile;
  const auto* g = static_cast<const typename A::Elem*>(weight);
  for (int64_t block = begin; block < end; ++block)
    for (int ch = 0; ch < c; ++ch) {
      typename F::Weight columns[3][3][kBlock] = {}, half[3][kTile][kBlock], u[kTile][kBlock], row[3][kBlock];
      for (int j = 0; j < 3; ++j) {
        for (int i = 0; i < 3; ++i)
          for (int kk = 0; kk < kBlock && block * kBlock + kk < k; ++kk)
            columns[j][i][kk] =
                A::value(g[(block * kBlock + kk) * strides[0] + ch * strides[1] + i * strides[2] + j * strides[3]]);
        transform_filters<F>(columns[j], half[j]);
      }
      for (int i = 0; i < kTile; ++i) {
        for (int j = 0; j < 3; ++j) __builtin_memcpy(row[j], half[j][i], sizeof row[j]);
        transform_filters<F>(row, u);
        for (int j = 0; j < kTile; ++j) {
          float* to = packed + ((block * kPoints<F> + i * kTile + j) * c + ch) * kBlock;
          for (int kk = 0; kk < kBlock; ++kk) to[kk] = static_cast<float>(u[j][kk]);
        }
      }
    }
}

template <typename A, typename F>
bool winograd_run(const WinogradConv& conv, int64_t begin, int64_t end) {
  bool finite = true;
  for (int64_t i = begin; i < end; ++i) finite = run_task<A, F>(conv, i) && finite;
  return finite;
}

template <typename A, typename F>
constexpr WinogradKernels kWinogradKernels = {kPoints<F>, winograd_tiling<F>, winograd_pack<A, F>, winograd_run<A, F>};

}  // namespace
}  // namespace resnet_fused::cpu::avx512
