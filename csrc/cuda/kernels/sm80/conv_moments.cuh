// Epilogue of a convolution with batch statistics: rounds and stores the pre-BN output, and computes the moments of the
// stored values.
#pragma once
#include "cuda/kernels/bn/moments.cuh"
#include "cuda/kernels/bn/reduction.h"
#include "cuda/kernels/sm80/conv_epilogue.cuh"

namespace resnet_fused::cuda {

// Sum over the lanes that hold the same channels.
template <int kLanesARow>
__device__ __forceinline__ float sum_rows(float v) {
#pragma unroll
  for (uint32_t by = kLanesARow; by < 32; by *= 2) v += ptx::mov_f32_b32(ptx::shfl_bfly(~0u, ptx::mov_b32_f32(v), by));
  return v;
}

// A warp's center is the mean of its first 16 rows, rounded to the stored dtype, so that distances of 16-bit values are
// exact. Two warps share a tile's channels: the warp of the lower rows hands its moments to the warp of the upper rows,
// which moves them to its own center and stores the part.
template <typename Config>
__device__ __forceinline__ void store_tile_and_moments(const typename Config::Warp& main, const ConvFwdParams& p,
                                                       unsigned char* ring, const ChannelTable& bias, int32_t m0,
                                                       int32_t n0) {
  constexpr int kPer = Config::kPerChunk;
  using Place = WarpPlace<Config, kPer>;
  using Slab = Transpose<Config::kWarpN>;
  using Data = typename Config::Data;
  static_assert(Config::kM == 2 * Config::kWarpM);
  const Place place(m0, n0);
  const int32_t pixels = p.main.shape.n * p.main.shape.p * p.main.shape.q, k = p.main.shape.k;
  const Slab slab{reinterpret_cast<float*>(ring + place.part * Slab::kBytes)};
  float* const exchange = reinterpret_cast<float*>(ring + Config::kWarps * Slab::kBytes);  // (3, kN)
  static_assert(Config::kWarps * Slab::kBytes + 3 * Config::kN * sizeof(float) <=
                Config::kStages * Config::kStageBytes);

  const ChannelRegisters<kPer> add_bias(bias, place.tile_n);
  const auto read = [&](float (&v)[kPer], int pass) {
    slab.read(v, place.row + pass * Place::kRowsAPass, place.col);
#pragma unroll
    for (int e = 0; e < kPer; ++e) v[e] = add_bias.apply(v[e], e);
    Data stored;
    Data::pack(stored.words, v);
    return stored;
  };
  float center[kPer] = {}, sum[kPer] = {}, squares[kPer] = {};
#pragma unroll
  for (int i = 0; i < Config::Warp::kFragmentRows; ++i) {
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
      const float share = ptx::rcp_rn(sum_rows<Place::kLanesARow>(rows));
#pragma unroll
      for (int e = 0; e < kPer; ++e) v[e] = sum_rows<Place::kLanesARow>(center[e]) * share;
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
        ptx::st_global_v4(static_cast<char*>(p.out) + at, stored.words);
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
  const bool lower = place.part >= Config::kWarpsN, first_row = place.row == 0;
  if (lower && first_row) {
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      exchange[place.tile_n + e] = center[e];
      exchange[Config::kN + place.tile_n + e] = sum[e];
      exchange[2 * Config::kN + place.tile_n + e] = squares[e];
    }
  }
  ptx::bar_sync_all();
  if (lower || !first_row || place.n >= k) return;
  const int32_t left = pixels - (m0 + Config::kWarpM), most = Config::kWarpM;
  const float count = left < 0 ? 0 : left < most ? left : most;
  if (count > 0) {
#pragma unroll
    for (int e = 0; e < kPer; ++e) {
      const float by = exchange[place.tile_n + e] - center[e], distances = exchange[Config::kN + place.tile_n + e];
      sum[e] += distances + count * by;
      squares[e] += exchange[2 * Config::kN + place.tile_n + e] + by * (2 * distances + count * by);
    }
  }
  using Four = Chunk<Dtype::kFloat32, 4>;
  char* const part = reinterpret_cast<char*>(p.statistics) +
                     (static_cast<uint64_t>(m0 / Config::kM) * 3 * k + place.n) * sizeof(float);
  const uint64_t next = static_cast<uint64_t>(k) * sizeof(float);
#pragma unroll
  for (int e = 0; e < kPer; e += 4) {
    const float centers[] = {center[e], center[e + 1], center[e + 2], center[e + 3]};
    const float sums[] = {sum[e], sum[e + 1], sum[e + 2], sum[e + 3]};
    const float all_squares[] = {squares[e], squares[e + 1], squares[e + 2], squares[e + 3]};
    Four::store(part + e * sizeof(float), centers);
    Four::store(part + next + e * sizeof(float), sums);
    Four::store(part + 2 * next + e * sizeof(float), all_squares);
  }
}

}  // namespace resnet_fused::cuda
