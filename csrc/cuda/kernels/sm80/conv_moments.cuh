// Epilogue of a convolution with batch statistics: rounds and stores the pre-BN output, and computes the moments of the
// stored values.
#pragma once
#include "cuda/kernels/bn/moments.cuh"
#include "cuda/kernels/sm80/conv_parts.cuh"

namespace resnet_fused::cuda {

// A warp's center is the mean of its first 16 rows, rounded to the stored dtype, so that distances of 16-bit values are
// exact. The warp of the upper rows moves the lower warp's moments to its own center.
template <typename Config>
struct MomentsEpilogue {
  using Warp = typename Config::Warp;

  __device__ __forceinline__ void operator()(const Warp& main, const Warp&, const TileOutput<Config>& to) const {
    constexpr int kPer = Config::kPerChunk;
    using Part = TilePart<Config, Parts::kMoments>;
    using Place = WarpPlace<Config, kPer>;
    using Slab = Transpose<Config::kWarpN>;
    using Data = typename Config::Data;
    const Place place(to.m0, to.n0);
    const int32_t pixels = to.pixels(), k = to.channels();
    const Slab slab{reinterpret_cast<float*>(to.ring + place.part * Slab::kBytes)};

    const ChannelRegisters<kPer> add_bias(to.bn, place.tile_n);
    const auto read = [&](float (&v)[kPer], int pass) {
      slab.read(v, place.row + pass * Place::kRowsAPass, place.col);
#pragma unroll
      for (int e = 0; e < kPer; ++e) v[e] = add_bias.apply(v[e], e);
      Data stored;
      Data::pack(stored.words, v);
      return stored;
    };
    typename Part::Values own = {}, theirs;
    auto &center = own[0], &sum = own[1], &squares = own[2];
#pragma unroll
    for (int i = 0; i < Warp::kFragmentRows; ++i) {
      slab.write(main.sum[i], place.lane);
      ptx::bar_warp_sync(~0u);
      float v[kPer];
      if (i == 0) {
        float rows = 0;
#pragma unroll
        for (int pass = 0; pass < Place::kPasses; ++pass) {
          if (place.m + pass * Place::kRowsAPass >= pixels) continue;
          const Data stored = read(v, pass);
          rows += 1;
#pragma unroll
          for (int e = 0; e < kPer; ++e) center[e] += stored.get(e);
        }
        const float scale = ptx::rcp_rn(sum_rows<Place::kLanesARow>(rows));
#pragma unroll
        for (int e = 0; e < kPer; ++e) v[e] = sum_rows<Place::kLanesARow>(center[e]) * scale;
        Data rounded;
        Data::pack(rounded.words, v);
#pragma unroll
        for (int e = 0; e < kPer; ++e) center[e] = is_finite(rounded.get(e)) ? rounded.get(e) : 0;
      }
#pragma unroll
      for (int pass = 0; pass < Place::kPasses; ++pass) {
        const Data stored = read(v, pass);
        const int32_t m = place.m + i * 16 + pass * Place::kRowsAPass;
        if (m < pixels && place.n < k) {
          const uint64_t at = (static_cast<uint64_t>(m) * k + place.n) * kSizeOf<Config::kDtype>;
          ptx::st_global_v4(static_cast<char*>(to.p.out) + at, stored.words);
#pragma unroll
          for (int e = 0; e < kPer; ++e) add_distance(sum[e], squares[e], stored.get(e), center[e]);
        }
      }
      ptx::bar_warp_sync(~0u);  // before the next fragment row overwrites the slab
    }
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      sum[e] = sum_rows<Place::kLanesARow>(sum[e]);
      squares[e] = sum_rows<Place::kLanesARow>(squares[e]);
    }
    const Part part(place, to.ring, k);
    if (!part.receive(theirs, own)) return;
    const int32_t left = pixels - (to.m0 + Config::kWarpM), most = Config::kWarpM;
    const float count = left < 0 ? 0 : left < most ? left : most;
    if (count > 0) {
#pragma unroll
      for (int e = 0; e < kPer; ++e) {
        const float by = theirs[0][e] - center[e], distances = theirs[1][e];
        sum[e] += distances + count * by;
        squares[e] += theirs[2][e] + by * (2 * distances + count * by);
      }
    }
    part.store(to.p.statistics, to.m0, own);
  }
};

}  // namespace resnet_fused::cuda
