// Epilogue of a convolution that computes the gradient of relu(bn(pre_bn)): rounds and stores it, and sums the stored
// values for the backward pass of that BatchNorm.
#pragma once
#include "cuda/kernels/bn/reduction.h"
#include "cuda/kernels/sm80/conv_epilogue.cuh"
#include "cuda/kernels/sm80/conv_moments.cuh"

namespace resnet_fused::cuda {

// g is the stored gradient where the ReLU was open. As in bn_backward_reduce, bn(pre_bn) decides that, computed by the
// instruction that made the activation. Two warps share a tile's channels: the warp of the lower rows hands its sums to
// the warp of the upper rows, which stores the part.
template <typename Config>
__device__ __forceinline__ void store_tile_and_gradient_sums(const typename Config::Warp& main, const ConvFwdParams& p,
                                                             unsigned char* ring, const ChannelTable& bn_table,
                                                             int32_t m0, int32_t n0) {
  constexpr int kPer = Config::kPerChunk;
  using Place = WarpPlace<Config, kPer>;
  using Slab = Transpose<Config::kWarpN>;
  using Data = typename Config::Data;
  static_assert(Config::kM == 2 * Config::kWarpM);
  const Place place(m0, n0);
  const int32_t pixels = p.main.shape.n * p.main.shape.p * p.main.shape.q, k = p.main.shape.k;
  const Slab slab{reinterpret_cast<float*>(ring + place.part * Slab::kBytes)};
  float* const exchange = reinterpret_cast<float*>(ring + Config::kWarps * Slab::kBytes);  // (2, kN)
  static_assert(Config::kWarps * Slab::kBytes + 2 * Config::kN * sizeof(float) <=
                Config::kStages * Config::kStageBytes);

  const auto bytes_of = [](uint32_t elements) { return uint64_t{elements} * kSizeOf<Config::kDtype>; };
  const ChannelRegisters<kPer> bn(bn_table, place.tile_n);
  float mean[kPer] = {}, sum_g[kPer] = {}, sum_g_x[kPer] = {};
  if (place.n < k) read_channels<Config::kDtype>(mean, p.main.bn.mean, place.n, 0.0f);
#pragma unroll
  for (int i = 0; i < Config::Warp::kFragmentRows; ++i) {
    uint32_t at[Place::kPasses];  // in elements: 32 bits, half the registers of byte offsets
    bool inside[Place::kPasses];
    Data pre_bn[Place::kPasses], grad_addend[Place::kPasses];
#pragma unroll
    for (int pass = 0; pass < Place::kPasses; ++pass) {
      const int32_t m = place.m + i * 16 + pass * Place::kRowsAPass;
      inside[pass] = m < pixels && place.n < k;
      at[pass] = static_cast<uint32_t>(m) * k + place.n;
      if (!inside[pass]) continue;
      pre_bn[pass].template load<Access::kReadOnly>(static_cast<const char*>(p.pre_bn) + bytes_of(at[pass]));
      if (p.residual)
        grad_addend[pass].template load<Access::kReadOnly>(static_cast<const char*>(p.residual) + bytes_of(at[pass]));
    }
    slab.write(main.sum[i], place.lane);
    ptx::bar_warp_sync(~0u);
#pragma unroll
    for (int pass = 0; pass < Place::kPasses; ++pass) {
      float v[kPer];
      slab.read(v, place.row + pass * Place::kRowsAPass, place.col);
      if (!inside[pass]) continue;
      if (p.residual) {
#pragma unroll
        for (int e = 0; e < kPer; ++e) v[e] += grad_addend[pass].get(e);
      }
      Data stored;
      Data::pack(stored.words, v);
      ptx::st_global_v4(static_cast<char*>(p.out) + bytes_of(at[pass]), stored.words);
#pragma unroll
      for (int e = 0; e < kPer; ++e) {
        const float x = pre_bn[pass].get(e);
        const bool closed = bn.apply(x, e) <= kVanishes<Config::kDtype>;  // open for NaN, as in torch
        const float g = closed ? 0 : stored.get(e);
        sum_g[e] += g;
        sum_g_x[e] = ptx::fma_rn(g, x - mean[e], sum_g_x[e]);
      }
    }
    ptx::bar_warp_sync(~0u);  // before the next fragment row overwrites the slab
  }
#pragma unroll
  for (int e = 0; e < kPer; ++e) {
    sum_g[e] = sum_rows<Place::kLanesARow>(sum_g[e]);
    sum_g_x[e] = sum_rows<Place::kLanesARow>(sum_g_x[e]);
  }
  const bool lower = place.part >= Config::kWarpsN, first_row = place.row == 0;
  if (lower && first_row) {
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      exchange[place.tile_n + e] = sum_g[e];
      exchange[Config::kN + place.tile_n + e] = sum_g_x[e];
    }
  }
  ptx::bar_sync_all();
  if (lower || !first_row || place.n >= k) return;
  using Four = Chunk<Dtype::kFloat32, 4>;
  char* const part = reinterpret_cast<char*>(p.statistics) +
                     (static_cast<uint64_t>(m0 / Config::kM) * values_of(Parts::kSums) * k + place.n) * sizeof(float);
  const uint64_t next = static_cast<uint64_t>(k) * sizeof(float);
#pragma unroll
  for (int e = 0; e < kPer; e += 4) {
    float both_g[4], both_g_x[4];
#pragma unroll
    for (int f = 0; f < 4; ++f) {
      both_g[f] = sum_g[e + f] + exchange[place.tile_n + e + f];
      both_g_x[f] = sum_g_x[e + f] + exchange[Config::kN + place.tile_n + e + f];
    }
    Four::store(part + e * sizeof(float), both_g);
    Four::store(part + next + e * sizeof(float), both_g_x);
  }
}

}  // namespace resnet_fused::cuda
