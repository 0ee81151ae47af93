// Sums from which mean and variance come without loss: distances from a center within the sample keep them small.
#pragma once
#include "cuda/ptx/math.cuh"

namespace resnet_fused::cuda {

template <typename Acc>
__device__ __forceinline__ bool is_finite(Acc v) {
  return v - v == Acc(0);
}

// The median of three, so that an outlier is not the center. A center that is not finite is replaced by 0.
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

// The same sums of `count` elements about a center that lies `by` higher.
__device__ __forceinline__ void move_center(double& sum, double& squares, double count, double by) {
  squares -= by * (2 * sum - count * by);
  sum -= count * by;
}

// The same sums of `count` elements about their mean, as near to it as Acc can say, so that they fit into Acc as well.
// A mean that is not finite is no center.
template <typename Acc>
__device__ __forceinline__ void center_on_mean(double& center, double& sum, double& squares, double count) {
  const double mean = static_cast<Acc>(center + sum / count), by = mean - center;
  if (!is_finite(mean)) return;
  move_center(sum, squares, count, by);
  center = mean;
}

}  // namespace resnet_fused::cuda
