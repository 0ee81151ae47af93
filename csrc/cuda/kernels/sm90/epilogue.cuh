// The epilogue of a consumer warp group. Rows of its accumulators are channels, columns are pixels.
#pragma once
#include "cuda/device/ptx/mma.cuh"
#include "cuda/device/ptx/stmatrix.cuh"
#include "cuda/device/tile/scale_shift.cuh"
#include "cuda/device/tile/swizzle.cuh"
#include "cuda/kernels/conv.h"

namespace resnet_fused::cuda {

// Scale and shift of a thread's two accumulator rows (channels).
template <Dtype kDtype>
struct RowAffine {
  float scale[2] = {}, shift[2] = {};

  __device__ __forceinline__ RowAffine(const BatchNormVectors& bn, int32_t channel, int32_t channels) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (channel + i * 8 < channels) {
        const ScaleShift<kDtype, 1> one(bn, channel + i * 8);
        scale[i] = one.scale[0], shift[i] = one.shift[0];
      }
  }
  __device__ __forceinline__ float apply(float v, int row) const { return ptx::fma_rn(v, scale[row], shift[row]); }
};

// Applies BatchNorm, shortcut and ReLU, rounds once, and moves the product from registers to the output tile in shared
// memory. The product's rows are channels, the tile's rows are pixels, so stmatrix transposes. The residual is read
// from the output tile's memory by a transposing ldmatrix.
template <typename Config, bool kRelu>
__device__ __forceinline__ void finish_as(const typename Config::Sum& sum, const typename Config::Sum* projected,
                                          const RowAffine<Config::kDtype>& bn,
                                          const RowAffine<Config::kDtype>& projection_bn, bool residual, uint32_t out) {
  using Pair = Chunk<Config::kDtype, 8>;  // four words, two elements each
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int j = 0; j < Config::kColumns / 8; j += 2) {
    // Words 0 and 1 hold piece j, the warp's first and second eight channels; words 2 and 3 hold piece j + 1.
    const uint32_t address = out + swizzled((j + lane / 16) * 8 + lane % 8, warp * 2 + lane / 8 % 2);
    Pair shortcut;
    if (!Config::kProjects && residual) ptx::ldmatrix_x4_trans(shortcut.words, address);
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const int row = e / 2 % 2;
      v[e] = bn.apply(sum[j * 4 + e], row);
      if constexpr (Config::kProjects)
        v[e] += projection_bn.apply((*projected)[j * 4 + e], row);
      else if (residual)
        v[e] += shortcut.get(e);
    }
    Pair packed;
    if constexpr (kRelu)
      Pair::pack_relu(packed.words, v);
    else
      Pair::pack(packed.words, v);
    ptx::stmatrix_x4_trans(address, packed.words);
  }
}

// Compiles the loop with and without ReLU: ReLU and rounding are then one instruction, and no branch separates pieces.
template <typename Config>
__device__ __forceinline__ void finish(const typename Config::Sum& sum, const typename Config::Sum* projected,
                                       const RowAffine<Config::kDtype>& bn,
                                       const RowAffine<Config::kDtype>& projection_bn, bool residual, bool relu,
                                       uint32_t out) {
  if (relu)
    finish_as<Config, true>(sum, projected, bn, projection_bn, residual, out);
  else
    finish_as<Config, false>(sum, projected, bn, projection_bn, residual, out);
}

// A consumer's part of a tile: its first pixel, the thread's first channel, and the part in shared memory.
struct StagedPart {
  int32_t pixel, channel;
  uint32_t memory;
};

// act(bn(y) + residual), or with the projection as shortcut. hand_over() lets the store thread store the part.
template <typename Config>
struct AffineEpilogue {
  static constexpr bool kStreamK = true;  // a tile may be a work unit's partial sums instead
  using Sum = typename Config::Sum;
  using Affine = RowAffine<Config::kDtype>;

  template <typename HandOver>
  __device__ __forceinline__ void operator()(const Sum& sum, const Sum& projected, const Affine& bn,
                                             const Affine& projection_bn, const ConvFwdParams& p,
                                             const StagedPart& part, const HandOver& hand_over) const {
    finish<Config>(sum, &projected, bn, projection_bn, p.residual != nullptr, p.relu, part.memory);
    hand_over();
  }
};

}  // namespace resnet_fused::cuda
