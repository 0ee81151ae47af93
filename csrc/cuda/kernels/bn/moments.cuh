// Mean and variance without cancellation: sums of distances from a center within the sample, and of their squares.
#pragma once
#include "cuda/device/ptx/math.cuh"

namespace resnet_fused::cuda {

template <typename Acc>
__device__ __forceinline__ bool is_finite(Acc v) {
  return v - v == Acc(0);
}

// Median of three, so that one outlier does not become the center; 0 if the median is not finite.
template <typename Acc>
__device__ __forceinline__ Acc center_of(Acc a, Acc b, Acc c) {
  const Acc low = a < b ? a : b, high = a < b ? b : a, next = high < c ? high : c;
  const Acc center = low < next ? next : low;
  return is_finite(center) ? center : Acc(0);
}

template <typename Acc>
__device__ __forceinline__ void add_distance(Acc& sum, Acc& squares, Acc v, Acc center) {
  const Acc d = v - center;
  sum += d;
  squares = ptx::fma_rn(d, d, squares);
}

// Moves the center of the sums of `count` elements up by `by`.
__device__ __forceinline__ void move_center(double& sum, double& squares, double count, double by) {
  squares -= by * (2 * sum - count * by);
  sum -= count * by;
}

// Moves the center of the sums of `count` elements to their mean, rounded to Acc, so that the sums stay accurate when
// stored as Acc. Does nothing if the mean is not finite.
template <typename Acc>
__device__ __forceinline__ void center_on_mean(double& center, double& sum, double& squares, double count) {
  const double mean = static_cast<Acc>(center + sum / count), by = mean - center;
  if (!is_finite(mean)) return;
  move_center(sum, squares, count, by);
  center = mean;
}

}  // namespace resnet_fused::cuda
