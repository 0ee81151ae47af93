// The part of a reduction over pixels that an epilogue leaves for bn_finish: a few values per channel of its tile.
#pragma once
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

// Two warps share a tile's channels: the warp of the lower rows hands its values to the warp of the upper rows, which
// combines both and stores the part.
template <typename Config, Parts kWhat>
struct TilePart {
  static constexpr int kPer = Config::kPerChunk, kValues = values_of(kWhat);
  using Place = WarpPlace<Config, kPer>;
  using Values = float[kValues][kPer];
  static constexpr uint32_t kSlabBytes = Config::kWarps * Transpose<Config::kWarpN>::kBytes;
  static_assert(Config::kM == 2 * Config::kWarpM);
  static_assert(kSlabBytes + kValues * Config::kN * sizeof(float) <= Config::kStages * Config::kStageBytes);

  const Place& place;
  float* exchange;  // (kValues, kN), behind the slabs
  int32_t k;

  __device__ __forceinline__ TilePart(const Place& place, unsigned char* ring, int32_t k)
      : place(place), exchange(reinterpret_cast<float*>(ring + kSlabBytes)), k(k) {}

  // Returns whether this thread stores the part of its channels; then `theirs` has the lower warp's values.
  __device__ __forceinline__ bool receive(Values& theirs, const Values& own) const {
    const bool lower = place.part >= Config::kWarpsN, first_row = place.row == 0;
    if (lower && first_row) {
#pragma unroll
      for (int v = 0; v < kValues; ++v)
#pragma unroll
        for (int e = 0; e < kPer; ++e) exchange[v * Config::kN + place.tile_n + e] = own[v][e];
    }
    ptx::bar_sync_all();
    if (lower || !first_row || place.n >= k) return false;
#pragma unroll
    for (int v = 0; v < kValues; ++v)
#pragma unroll
      for (int e = 0; e < kPer; ++e) theirs[v][e] = exchange[v * Config::kN + place.tile_n + e];
    return true;
  }

  __device__ __forceinline__ void store(float* statistics, int32_t m0, const Values& values) const {
    using Four = Chunk<Dtype::kFloat32, 4>;
    float* const part = statistics + static_cast<uint64_t>(m0 / Config::kM) * kValues * k + place.n;
#pragma unroll
    for (int v = 0; v < kValues; ++v)
#pragma unroll
      for (int e = 0; e < kPer; e += 4) {
        const float four[] = {values[v][e], values[v][e + 1], values[v][e + 2], values[v][e + 3]};
        Four::store(reinterpret_cast<char*>(part + static_cast<uint64_t>(v) * k + e), four);
      }
  }
};

}  // namespace resnet_fused::cuda
