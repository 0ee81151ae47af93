// max_pool2d(relu(bn(x))). In training it also stores the argmax, one byte per value. See
// docs/kernels/bn_train_cuda.md.
#pragma once
#include "cuda/device/ptx/grid.cuh"
#include "cuda/device/tile/scale_shift.cuh"
#include "cuda/kernels/pool/pixel.cuh"

namespace resnet_fused::cuda {

template <Dtype kDtype, int kVector, int kWindow_, bool kArgmax_>
struct BnPoolConfig : BnConfig<kDtype, kVector, Layout::kNHWC> {
  static constexpr int kWindow = kWindow_;  // rows and columns of a window; 0: any
  static constexpr bool kArgmax = kArgmax_;
  using Affine = ScaleShift<kDtype, kVector>;
};

// Running maximum of a thread's channels, starting at 0 (the ReLU), and with kArgmax its position in the window.
// Torch's rules: the first of equal values wins; NaN is larger than everything, and the last NaN wins.
template <typename Config>
struct Largest {
  using Acc = typename Config::Acc;

  Acc value[Config::kVector];
  uint32_t number[Config::kVector];  // unused without kArgmax, so it takes no registers

  __device__ __forceinline__ void begin(int c) {
    value[c] = 0;
    if constexpr (Config::kArgmax) number[c] = kNoArgmax;
  }

  __device__ __forceinline__ void take(int c, Acc v, uint32_t id) {
    const bool takes = v > value[c] || v != v;
    value[c] = takes ? v : value[c];
    if constexpr (Config::kArgmax) number[c] = takes ? id : number[c];
  }

  __device__ __forceinline__ void store(const BnPoolParams& p, uint32_t access) {
    Config::Data::store(static_cast<char*>(p.out) + data_at<Config>(access), value);
    if constexpr (Config::kArgmax) {
      // What is stored as 0 did not pass the ReLU.
#pragma unroll
      for (int c = 0; c < Config::kVector; ++c)
        if (value[c] <= Acc(kVanishes<Config::kDtype>)) number[c] = kNoArgmax;
      Bytes<Config::kVector>::store(static_cast<char*>(p.argmax) + bytes_at<Config>(access), number);
    }
  }
};

// Windows of any size: loads one pixel at a time and skips padding.
template <typename Config>
__device__ __forceinline__ void any_window(Largest<Config>& largest, const BnPoolParams& p, const PoolLoop& loop,
                                           const typename Config::Affine& bn, const Pixel& out, uint32_t lane) {
  const PoolAxis &h = p.shape.h, &w = p.shape.w;
  const int32_t top = out.h * h.stride - h.pad, left = out.w * w.stride - w.pad;
  const int32_t bottom = smaller(top + h.kernel, h.in), right = smaller(left + w.kernel, w.in);
#pragma unroll
  for (int c = 0; c < Config::kVector; ++c) largest.begin(c);
  for (int32_t row = larger(top, 0); row < bottom; ++row)
    for (int32_t column = larger(left, 0); column < right; ++column) {
      typename Config::Data x;
      x.template load<Access::kReused>(static_cast<const char*>(p.x) +
                                       data_at<Config>(access_of(loop, lane, out.image, row, column, h.in, w.in)));
      const uint32_t id = (row - top) * w.kernel + column - left;
#pragma unroll
      for (int c = 0; c < Config::kVector; ++c) largest.take(c, bn.apply(x.get(c), c), id);
    }
}

// Windows of kWindow x kWindow: all loads are in flight together. Padding is replaced by the nearest pixel, with that
// pixel's own position. Seeing a pixel twice changes neither the maximum nor the argmax (first maximum or last NaN).
template <typename Config>
__device__ __forceinline__ void small_window(Largest<Config>& largest, const BnPoolParams& p, const PoolLoop& loop,
                                             const typename Config::Affine& bn, const Pixel& out, uint32_t lane) {
  using Acc = typename Config::Acc;
  constexpr int kWindow = Config::kWindow, kTaps = kWindow * kWindow;
  const PoolAxis &h = p.shape.h, &w = p.shape.w;
  const int32_t top = out.h * h.stride - h.pad, left = out.w * w.stride - w.pad;
  typename Config::Data x[kTaps];
  uint32_t id[kTaps];
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    const int32_t row = smaller(larger(top + t / kWindow, 0), h.in - 1);
    const int32_t column = smaller(larger(left + t % kWindow, 0), w.in - 1);
    id[t] = (row - top) * kWindow + column - left;
    x[t].template load<Access::kReused>(static_cast<const char*>(p.x) +
                                        data_at<Config>(access_of(loop, lane, out.image, row, column, h.in, w.in)));
  }
#pragma unroll
  for (int c = 0; c < Config::kVector; ++c) {
    // First the maximum, then its position, from last tap to first: fewer instructions than tracking both at once.
    Acc v[kTaps], most = 0;
#pragma unroll
    for (int t = 0; t < kTaps; ++t) most = ptx::max_nan(most, v[t] = bn.apply(x[t].get(c), c));
    largest.value[c] = most;
    if constexpr (Config::kArgmax) {
      uint32_t number = kNoArgmax;
#pragma unroll
      for (int t = kTaps - 1; t >= 0; --t) number = v[t] == most ? id[t] : number;
      if (most != most) {
#pragma unroll
        for (int t = 0; t < kTaps; ++t) number = v[t] != v[t] ? id[t] : number;
      }
      largest.number[c] = number;
    }
  }
}

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, kBnBlocksPerSm)
    bn_pool_kernel(const BnPoolParams p, const PoolLoop loop) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const PoolThread thread(loop);
  const uint32_t lane = thread.lane;
  if (lane >= loop.all_lanes) return;
  const typename Config::Affine bn(p.bn, lane * Config::kChannels);
  thread.for_each_pixel(loop, [&](const Pixel& out, uint32_t access) {
    Largest<Config> largest;
    if constexpr (Config::kWindow != 0)
      small_window(largest, p, loop, bn, out, lane);
    else
      any_window(largest, p, loop, bn, out, lane);
    largest.store(p, access);
  });
}

}  // namespace resnet_fused::cuda
