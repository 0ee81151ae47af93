// Epilogue of a convolution that computes the gradient of relu(bn(pre_bn)): rounds and stores it, and sums the stored
// values for the backward pass of that BatchNorm.
#pragma once
#include "cuda/kernels/sm80/conv_parts.cuh"

namespace resnet_fused::cuda {

// g is the stored gradient where the ReLU was open. As in bn_backward_reduce, bn(pre_bn) decides that, computed by the
// instruction that made the activation.
template <typename Config>
struct GradientSumsEpilogue {
  using Warp = typename Config::Warp;

  __device__ __forceinline__ void operator()(const Warp& main, const Warp&, const TileOutput<Config>& to) const {
    constexpr int kPer = Config::kPerChunk;
    using Part = TilePart<Config, Parts::kSums>;
    using Place = WarpPlace<Config, kPer>;
    using Slab = Transpose<Config::kWarpN>;
    using Data = typename Config::Data;
    const ConvFwdParams& p = to.p;
    const Place place(to.m0, to.n0);
    const int32_t pixels = to.pixels(), k = to.channels();
    const Slab slab{reinterpret_cast<float*>(to.ring + place.part * Slab::kBytes)};

    const auto bytes_of = [](uint32_t elements) { return uint64_t{elements} * kSizeOf<Config::kDtype>; };
    const ChannelRegisters<kPer> bn(to.bn, place.tile_n);
    float mean[kPer] = {};
    typename Part::Values own = {}, theirs;
    auto &sum_g = own[0], &sum_g_x = own[1];
    if (place.n < k) read_channels<Config::kDtype>(mean, p.main.bn.mean, place.n, 0.0f);
#pragma unroll
    for (int i = 0; i < Warp::kFragmentRows; ++i) {
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
    const Part part(place, to.ring, k);
    if (!part.receive(theirs, own)) return;
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      sum_g[e] += theirs[0][e];
      sum_g_x[e] += theirs[1][e];
    }
    part.store(p.statistics, to.m0, own);
  }
};

}  // namespace resnet_fused::cuda
