// Adds the split-K slices of a convolution and runs the epilogue of conv_fwd.
#pragma once
#include "cuda/device/ptx/grid.cuh"
#include "cuda/device/tile/element.cuh"
#include "cuda/device/tile/scale_shift.cuh"
#include "cuda/kernels/bn/bn_add_act.h"
#include "cuda/kernels/sm80/conv_fwd.h"

namespace resnet_fused::cuda {

template <Dtype kDtype_, bool kProjects_>
struct ConvFinishConfig {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr bool kProjects = kProjects_;  // the last slice is the projection
  static constexpr int kVector = 16 / kSizeOf<kDtype>;
  static constexpr int kThreads = kBnThreads;
};

// Loads kCount floats of one slice.
template <int kCount>
__device__ __forceinline__ void load_partial(float (&v)[kCount], const char* address) {
#pragma unroll
  for (int e = 0; e < kCount; e += 4) {
    Chunk<Dtype::kFloat32, 4> four;
    four.load<Access::kReadOnly>(address + e * sizeof(float));
#pragma unroll
    for (int i = 0; i < 4; ++i) v[e + i] = four.get(i);
  }
}

// Covers the output as bn_add_act does: a thread keeps its channels, so their scale and shift, and loops over pixels.
template <typename Config>
__global__ void __launch_bounds__(Config::kThreads)
    conv_finish_kernel(const ConvFwdParams p, const GridStrideLoop loop) {
  constexpr int kVector = Config::kVector;
  using Affine = ScaleShift<Config::kDtype, kVector>;
  using Data = Chunk<Config::kDtype, kVector>;
  ptx::griddepcontrol_wait();
  ptx::griddepcontrol_launch_dependents();
  const uint32_t group = blockIdx.x % loop.groups, split = blockIdx.x / loop.groups;
  const uint32_t lane = group * loop.lanes + threadIdx.x % loop.lanes;
  if (lane >= loop.all_lanes) return;
  const Affine bn(p.main.bn, lane * kVector);
  const Affine projection_bn = Config::kProjects ? Affine(p.projection.bn, lane * kVector) : bn;

  const uint64_t slice = static_cast<uint64_t>(loop.items) * loop.all_lanes * (kVector * sizeof(float));
  for (uint32_t i = split * loop.slots + threadIdx.x / loop.lanes; i < loop.items; i += loop.splits * loop.slots) {
    const uint64_t access = static_cast<uint64_t>(i) * loop.all_lanes + lane;
    const char* partial = reinterpret_cast<const char*>(p.partials) + access * (kVector * sizeof(float));
    Data residual;
    if (!Config::kProjects && p.residual)
      residual.template load<Access::kReadOnly>(static_cast<const char*>(p.residual) + access * 16);
    float sum[kVector], next[kVector];
    load_partial(sum, partial);
    for (int32_t s = 1; s < p.splits; ++s) {
      load_partial(next, partial + s * slice);
#pragma unroll
      for (int e = 0; e < kVector; ++e) sum[e] += next[e];
    }
    if (Config::kProjects) load_partial(next, partial + p.splits * slice);
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      sum[e] = bn.apply(sum[e], e);
      if (Config::kProjects)
        sum[e] += projection_bn.apply(next[e], e);
      else if (p.residual)
        sum[e] += residual.get(e);
      if (p.relu) sum[e] = relu_of(sum[e]);
    }
    Data::store(static_cast<char*>(p.out) + access * 16, sum);
  }
}

}  // namespace resnet_fused::cuda
