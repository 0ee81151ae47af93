// Max-pooling backward: each input pixel gathers from the windows that contain it, in a fixed order, without atomics or
// zeroing. See docs/kernels/bn_train_cuda.md.
#pragma once
#include "cuda/device/ptx/grid.cuh"
#include "cuda/kernels/pool/pixel.cuh"

namespace resnet_fused::cuda {

template <Dtype kDtype, int kVector, int kWindow_>
struct PoolBackwardConfig : BnConfig<kDtype, kVector, Layout::kNHWC> {
  static constexpr int kWindow = kWindow_;  // at most kWindow x kWindow windows contain a pixel; 0: any
};

// Windows [first, last] along one axis that contain a pixel; none if first > last. `from` is the distance of the pixel
// from the start of window 0.
struct Windows {
  int32_t from, first, last;

  __device__ __forceinline__ Windows(const PoolAxis& axis, const FastDivmod& stride, int32_t at) : from(at + axis.pad) {
    first = from < axis.kernel ? 0 : stride.div(from - axis.kernel) + 1;
    last = smaller(stride.div(from), axis.out - 1);
  }
};

// One access each of the windows' gradient and argmax.
template <typename Config>
struct Pooled {
  using Acc = typename Config::Acc;

  typename Config::Data grad;
  Bytes<Config::kVector> argmax;

  __device__ __forceinline__ void load(const PoolBackwardParams& p, uint32_t access) {
    grad.template load<Access::kReused>(static_cast<const char*>(p.grad) + data_at<Config>(access));
    argmax.load(static_cast<const char*>(p.argmax) + bytes_at<Config>(access));
  }

  __device__ __forceinline__ void add_to(Acc (&sum)[Config::kVector], uint32_t id) const {
#pragma unroll
    for (int c = 0; c < Config::kVector; ++c)
      if (argmax.get(c) == id) sum[c] += grad.get(c);
  }
};

// Position of the pixel within window (row, column), as the argmax counts it.
__device__ __forceinline__ uint32_t number_in(const PoolShape& s, const Windows& h, const Windows& w, int32_t row,
                                              int32_t column) {
  return (h.from - row * s.h.stride) * s.w.kernel + w.from - column * s.w.stride;
}

template <typename Config>
__device__ __forceinline__ void gather_any(typename Config::Acc (&sum)[Config::kVector], const PoolBackwardParams& p,
                                           const PoolLoop& loop, int32_t image, const Windows& h, const Windows& w,
                                           uint32_t lane) {
  for (int32_t row = h.first; row <= h.last; ++row)
    for (int32_t column = w.first; column <= w.last; ++column) {
      Pooled<Config> pooled;
      pooled.load(p, access_of(loop, lane, image, row, column, p.shape.h.out, p.shape.w.out));
      pooled.add_to(sum, number_in(p.shape, h, w, row, column));
    }
}

// At most kWindow x kWindow windows: all loads are in flight together. In place of a missing window, the last one is
// loaded but not added.
template <typename Config>
__device__ __forceinline__ void gather_few(typename Config::Acc (&sum)[Config::kVector], const PoolBackwardParams& p,
                                           const PoolLoop& loop, int32_t image, const Windows& h, const Windows& w,
                                           uint32_t lane) {
  constexpr int kWindow = Config::kWindow;
  Pooled<Config> pooled[kWindow * kWindow];
#pragma unroll
  for (int i = 0; i < kWindow * kWindow; ++i)
    pooled[i].load(p, access_of(loop, lane, image, smaller(h.first + i / kWindow, h.last),
                                smaller(w.first + i % kWindow, w.last), p.shape.h.out, p.shape.w.out));
#pragma unroll
  for (int i = 0; i < kWindow * kWindow; ++i) {
    const int32_t row = h.first + i / kWindow, column = w.first + i % kWindow;
    if (row <= h.last && column <= w.last) pooled[i].add_to(sum, number_in(p.shape, h, w, row, column));
  }
}

template <typename Config>
__global__ void __launch_bounds__(Config::kThreads, kBnBlocksPerSm)
    pool_backward_kernel(const PoolBackwardParams p, const PoolLoop loop) {
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const PoolThread thread(loop);
  const uint32_t lane = thread.lane;
  if (lane >= loop.all_lanes) return;
  thread.for_each_pixel(loop, [&](const Pixel& in, uint32_t access) {
    const Windows h(p.shape.h, loop.stride_h, in.h), w(p.shape.w, loop.stride_w, in.w);
    typename Config::Acc sum[Config::kVector] = {};
    if constexpr (Config::kWindow != 0)
      gather_few<Config>(sum, p, loop, in.image, h, w, lane);
    else
      gather_any<Config>(sum, p, loop, in.image, h, w, lane);
    Config::Data::store(static_cast<char*>(p.to) + data_at<Config>(access), sum);
  });
}

}  // namespace resnet_fused::cuda
