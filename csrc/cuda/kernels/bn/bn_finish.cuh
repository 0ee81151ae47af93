// Adds the parts of each channel in float64, in a fixed order.
#pragma once
#include "cuda/device/ptx/grid.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/tile/scale_shift.cuh"
#include "cuda/kernels/bn/bn_finish.h"
#include "cuda/kernels/bn/fold.cuh"
#include "cuda/kernels/bn/moments.cuh"
#include "cuda/kernels/bn/parts.cuh"

namespace resnet_fused::cuda {

template <Dtype kDtype_, Parts kParts_, bool kLast_>
struct BnFinishConfig {
  static constexpr Dtype kDtype = kDtype_;  // of `var`, if not float32
  static constexpr Parts kParts = kParts_;
  static constexpr bool kLast = kLast_;  // true: all parts to results; false: kMergedParts parts to one part
  static constexpr Dtype kSum = kDtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
  static constexpr int kBatch = 4;  // independent parts per thread

  static constexpr int kThreads = kFinishChannels * kFinishRows;
  static constexpr uint32_t kSharedBytes = kThreads * 2 * sizeof(double);
};

template <typename Config>
__device__ __forceinline__ double load_part(const BnParts& p, uint32_t part, int32_t which, int32_t channel) {
  const uint64_t at = value_at<Config::kParts>(part, which, p.channels, channel);
  return load_element<Config::kSum, Access::kReadOnly>(static_cast<const char*>(p.data) + at * kSizeOf<Config::kSum>);
}

template <typename Config>
__device__ __forceinline__ void store_sum(void* to, uint64_t at, double v) {
  using Sum = typename Arithmetic<Config::kSum>::Type;
  store_element<Config::kSum>(static_cast<char*>(to) + at * kSizeOf<Config::kSum>, static_cast<Sum>(v));
}

// Both sums of a channel over many parts, about one center (0 for kSums).
struct ChannelSums {
  double center, sum[2];

  // Adds sums of `count` elements about the center `from`. In float64 the distance of the centers is exact enough to be
  // squared.
  __device__ __forceinline__ void add_moments(double count, double from, double distances, double squares) {
    const double d = from - center;
    sum[0] += distances + count * d;
    sum[1] += squares + d * (2 * distances + count * d);
  }
};

// `merged`: destination of merged parts; unused if kLast.
template <typename Config>
__global__ void __launch_bounds__(Config::kThreads) bn_finish_kernel(const BnFinishParams p, void* merged) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  DYNAMIC_SMEM(smem);
  constexpr bool kMoments = Config::kParts == Parts::kMoments;
  constexpr int kRead = values_of(Config::kParts);
  const BnParts& parts = p.parts;
  const int32_t row = threadIdx.x / kFinishChannels;
  const int32_t channel = blockIdx.x * kFinishChannels + threadIdx.x % kFinishChannels;
  const bool inside = channel < parts.channels;
  const int32_t begin = Config::kLast ? 0 : blockIdx.y * kMergedParts;
  const int32_t end = Config::kLast || parts.parts - begin < kMergedParts ? parts.parts : begin + kMergedParts;

  ChannelSums sums{0, {0, 0}};
  if (kMoments && inside && begin < end) sums.center = load_part<Config>(parts, begin, 0, channel);
  const auto add = [&](int32_t part, const double (&v)[kRead]) {
    if constexpr (kMoments) {
      const uint32_t left = parts.total - part * parts.each;
      sums.add_moments(left < parts.each ? left : parts.each, v[0], v[1], v[2]);
    } else {
      sums.sum[0] += v[0];
      sums.sum[1] += v[1];
    }
  };
  if (inside) {
    int32_t part = begin + row;
    for (; part + (Config::kBatch - 1) * kFinishRows < end; part += Config::kBatch * kFinishRows) {
      double v[Config::kBatch][kRead];
#pragma unroll
      for (int b = 0; b < Config::kBatch; ++b)
#pragma unroll
        for (int i = 0; i < kRead; ++i) v[b][i] = load_part<Config>(parts, part + b * kFinishRows, i, channel);
#pragma unroll
      for (int b = 0; b < Config::kBatch; ++b) add(part + b * kFinishRows, v[b]);
    }
    for (; part < end; part += kFinishRows) {
      double v[kRead];
#pragma unroll
      for (int i = 0; i < kRead; ++i) v[i] = load_part<Config>(parts, part, i, channel);
      add(part, v);
    }
  }
  fold_slots(sums.sum, reinterpret_cast<double*>(smem), kFinishChannels, kFinishRows);
  if (!inside || row != 0) return;

  if constexpr (!Config::kLast) {
    double values[] = {sums.center, sums.sum[0], sums.sum[1]};
    if constexpr (kMoments) {
      const uint32_t first = begin * parts.each, left = parts.total - first, most = kMergedParts * parts.each;
      center_on_mean<typename Arithmetic<Config::kSum>::Type>(values[0], values[1], values[2],
                                                              left < most ? left : most);
    }
#pragma unroll
    for (int i = 0; i < kRead; ++i)
      store_sum<Config>(merged, value_at<Config::kParts>(blockIdx.y, i, parts.channels, channel),
                        values[kMoments ? i : i + 1]);
  } else if constexpr (kMoments) {
    // Without elements, 0 / 0 gives NaN.
    const double count = parts.total, mean = sums.sum[0] / count, var = (sums.sum[1] - sums.sum[0] * mean) / count;
    store_sum<Config>(p.first, channel, sums.center + mean);
    store_sum<Config>(p.second, channel, var < 0 ? 0 : var);  // NaN stays
  } else {
    double var[1];
    read_channels<Config::kDtype>(var, p.var, channel, 1.0);
    const double inverse = ptx::rcp_rn(ptx::sqrt_rn(var[0] + p.eps));
    store_sum<Config>(p.first, channel, sums.sum[0]);
    store_sum<Config>(p.second, channel, parts.parts > 0 ? sums.sum[1] * inverse : 0);  // no elements: 0, not 0 * Inf
  }
}

}  // namespace resnet_fused::cuda
