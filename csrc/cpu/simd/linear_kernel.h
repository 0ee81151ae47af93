// Global average pooling and the fully connected layer behind it, for few images: linear.h. Both are bound by memory.
#pragma once
#include <algorithm>

#include "cpu/linear.h"

namespace resnet_fused::cpu::simd::linear {
namespace {

// Registers of channels that are summed together: whole cache lines of each pixel.
template <typename V>
constexpr int kRegisters = V::kLanes / 2;

constexpr int64_t kPart = 16;  // pixels in a partial sum: a longer one of equal pixels loses digits

// The means of NV registers of channels, of which the last may have fewer lanes. step: elements between pixels.
template <typename A, int NV>
inline __attribute__((always_inline)) void mean_of(const typename A::Elem* x, int64_t pixels, int64_t step,
                                                   typename A::V::Mask lanes, float* to) {
  using V = typename A::V;
  typename V::Reg total[NV];
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) total[v] = V::zero();
  for (int64_t p = 0; p < pixels; p += kPart) {
    typename V::Reg part[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) part[v] = V::zero();
    for (int64_t i = p; i < std::min(pixels, p + kPart); ++i)
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) part[v] += A::load(x + i * step + v * V::kLanes, lanes);
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) total[v] += part[v];
  }
  const typename V::Reg count = V::set1(static_cast<float>(pixels));
#pragma GCC unroll 8
  for (int v = 0; v < NV; ++v) V::store(to + v * V::kLanes, total[v] / count);
}

// Lanes behind the last channel become 0.
template <typename A>
void mean(const PooledLinear& q, int64_t begin, int64_t end) {
  using V = typename A::V;
  constexpr int kBlock = kRegisters<V> * V::kLanes;
  const int64_t blocks = (q.c + kBlock - 1) / kBlock;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / blocks, first = task % blocks * kBlock, last = std::min(q.c, first + kBlock);
    const auto* x = static_cast<const typename A::Elem*>(q.x) + image * q.pixels * q.c;
    float* to = q.mean + image * q.mean_row;
    if (last - first == kBlock)
      mean_of<A, kRegisters<V>>(x + first, q.pixels, q.c, V::first(V::kLanes), to + first);
    else
      for (int64_t c = first; c < last; c += V::kLanes)
        mean_of<A, 1>(x + c, q.pixels, q.c, V::first(static_cast<int>(std::min<int64_t>(V::kLanes, last - c))), to + c);
  }
}

// R rows of the weight from k on, by M images: R * M running sums, one for each lane.
template <typename A, int R, int M>
void block(const PooledLinear& q, int64_t k, int64_t image) {
  using V = typename A::V;
  using Elem = typename A::Elem;
  static_assert(R * M <= V::kLanes);
  const Elem* w = static_cast<const Elem*>(q.weight) + k * q.weight_row;
  const float* x = q.mean + image * q.mean_row;
  typename V::Reg acc[V::kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < V::kLanes; ++i) acc[i] = V::zero();
  const auto step = [&](int64_t c, typename V::Mask lanes) __attribute__((always_inline)) {
    typename V::Reg in[M];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) in[m] = V::load(x + m * q.mean_row + c);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Elem* p = w + r * q.weight_row + c;
      __builtin_prefetch(p + R * q.weight_row, 0, 2);  // the next block's
      const typename V::Reg row = A::load(p, lanes);
#pragma GCC unroll 4
      for (int m = 0; m < M; ++m) acc[m * R + r] = V::fmadd(row, in[m], acc[m * R + r]);
    }
  };
  int64_t c = 0;
  for (; c + V::kLanes <= q.c; c += V::kLanes) step(c, V::first(V::kLanes));
  if (c < q.c) step(c, V::first(static_cast<int>(q.c - c)));

  V::transpose(acc);  // lane i of their sum is the sum of running sum i
#pragma GCC unroll 4
  for (int half = V::kLanes / 2; half; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) acc[i] += acc[i + half];
  float sums[2 * V::kLanes];  // read in whole registers
  V::store(sums, acc[0]);
  V::store(sums + V::kLanes, V::zero());
  constexpr typename V::Mask kLanes = V::first(R);
  for (int m = 0; m < M; ++m) {
    typename V::Reg y = V::load(sums + m * R);
    if (q.bias) y += A::load(static_cast<const Elem*>(q.bias) + k, kLanes);
    A::store(static_cast<Elem*>(q.out) + (image + m) * q.k + k, y, kLanes);
  }
}

// All images: M at a time, then the remaining ones.
template <typename A, int R, int M>
void all_images(const PooledLinear& q, int64_t k, int64_t image = 0) {
  for (; image + M <= q.n; image += M) block<A, R, M>(q, k, image);
  if constexpr (M > 1) all_images<A, R, M / 2>(q, k, image);
}

template <typename A, int R, int M>
void rows(const PooledLinear& q, int64_t k, int64_t end) {
  for (; k + R <= end; k += R) all_images<A, R, M>(q, k);
  for (; k < end; ++k) all_images<A, 1, M>(q, k);
}

constexpr int kRows = 8, kFewRows = 4;  // of the weight, by one image and by more

template <typename A>
void multiply(const PooledLinear& q, int64_t begin, int64_t end) {
  const int64_t first = begin * kRows, last = std::min(q.k, end * kRows);
  if (q.n == 1) return rows<A, kRows, 1>(q, first, last);
  rows<A, kFewRows, A::V::kLanes / kFewRows>(q, first, last);
}

template <typename A>
constexpr LinearKernels kKernels = {A::V::kLanes, kRegisters<typename A::V> * A::V::kLanes, kRows, mean<A>,
                                    multiply<A>};

}  // namespace
}  // namespace resnet_fused::cpu::simd::linear
