// Epilogues store a tile. This one: BatchNorm, shortcut, ReLU, one rounding, 16-byte stores.
#pragma once
#include "cuda/device/ptx/sync.cuh"
#include "cuda/device/tile/channel_table.cuh"
#include "cuda/kernels/sm80/conv_config.cuh"

namespace resnet_fused::cuda {

// Transposes a fragment row (16 pixels x the warp's columns) from the mma layout to one in which a lane holds whole
// 16-byte chunks of the output. Goes through the warp's own float32 shared memory.
template <int kCols>
struct Transpose {
  // Rows are 40 floats apart, so the four pixels of a half warp's 8-byte stores are 8 banks apart.
  static constexpr int kStride = kCols + 8;
  static constexpr int kBytes = 16 * kStride * 4;

  float* memory;

  template <int kFragments>
  __device__ __forceinline__ void write(const float (&sum)[kFragments][4], uint32_t lane) const {
    static_assert(kFragments * 8 == kCols);
#pragma unroll
    for (int j = 0; j < kFragments; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float* address = memory + (lane / 4 + half * 8) * kStride + j * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(address) = make_float2(sum[j][half * 2], sum[j][half * 2 + 1]);
      }
  }

  template <int kCount>
  __device__ __forceinline__ void read(float (&v)[kCount], uint32_t row, uint32_t col) const {
#pragma unroll
    for (int e = 0; e < kCount; e += 4) {
      const float4 f = *reinterpret_cast<const float4*>(memory + row * kStride + col + e);
      v[e] = f.x, v[e + 1] = f.y, v[e + 2] = f.z, v[e + 3] = f.w;
    }
  }
};

// Position in the output of a warp's rows and a lane's columns, for chunks of kPer elements.
template <typename Config, int kPer>
struct WarpPlace {
  static constexpr int kLanesARow = Config::kWarpN / kPer;
  static constexpr int kRowsAPass = 32 / kLanesARow, kPasses = 16 / kRowsAPass;
  static_assert(kPasses >= 1);

  uint32_t lane = threadIdx.x % 32, part = threadIdx.x / 32;
  uint32_t row = lane / kLanesARow, col = lane % kLanesARow * kPer;
  int32_t m, tile_n, n;  // output row, column within the tile, output column

  __device__ __forceinline__ WarpPlace(int32_t m0, int32_t n0)
      : m(m0 + part / Config::kWarpsN * Config::kWarpM + row),
        tile_n(part % Config::kWarpsN * Config::kWarpN + col),
        n(n0 + tile_n) {}
};

// Where a block's tile goes, and what its epilogue reads.
template <typename Config>
struct TileOutput {
  const ConvFwdParams& p;
  unsigned char* ring;  // the main loop's shared memory, free by now
  const ChannelTable &bn, &projection_bn;
  int32_t m0, n0;

  __device__ __forceinline__ int32_t pixels() const { return p.main.shape.n * p.main.shape.p * p.main.shape.q; }
  __device__ __forceinline__ int32_t channels() const { return p.main.shape.k; }
};

// act(bn(y) + residual), or with the projection as shortcut.
template <typename Config>
struct AffineEpilogue {
  using Warp = typename Config::Warp;

  __device__ __forceinline__ void operator()(const Warp& main, const Warp& projected,
                                             const TileOutput<Config>& to) const {
    constexpr int kPer = Config::kPerChunk;
    using Place = WarpPlace<Config, kPer>;
    using Slab = Transpose<Config::kWarpN>;
    const ConvFwdParams& p = to.p;
    const Place place(to.m0, to.n0);
    const int32_t pixels = to.pixels(), k = to.channels();
    constexpr int kSlabs = Config::kProjects ? 2 : 1;
    unsigned char* own = to.ring + place.part * kSlabs * Slab::kBytes;
    const Slab slab{reinterpret_cast<float*>(own)};
    const Slab projected_slab{reinterpret_cast<float*>(own + (kSlabs - 1) * Slab::kBytes)};
    static_assert(kSlabs * Slab::kBytes * Config::kWarps <= Config::kStages * Config::kStageBytes);

    const ChannelRegisters<kPer> bn(to.bn, place.tile_n);
    const ChannelRegisters<kPer> projection_bn(Config::kProjects ? to.projection_bn : to.bn, place.tile_n);
#pragma unroll
    for (int i = 0; i < Warp::kFragmentRows; ++i) {
      uint64_t at[Place::kPasses];
      bool inside[Place::kPasses];
      typename Config::Data residual[Place::kPasses];
#pragma unroll
      for (int pass = 0; pass < Place::kPasses; ++pass) {
        const int32_t m = place.m + i * 16 + pass * Place::kRowsAPass;
        inside[pass] = m < pixels && place.n < k;
        at[pass] = (static_cast<uint64_t>(m) * k + place.n) * kSizeOf<Config::kDtype>;
        if constexpr (!Config::kProjects)
          if (p.residual && inside[pass])
            residual[pass].template load<Access::kReadOnly>(static_cast<const char*>(p.residual) + at[pass]);
      }
      slab.write(main.sum[i], place.lane);
      if constexpr (Config::kProjects) projected_slab.write(projected.sum[i], place.lane);
      ptx::bar_warp_sync(~0u);
#pragma unroll
      for (int pass = 0; pass < Place::kPasses; ++pass) {
        float v[kPer];
        slab.read(v, place.row + pass * Place::kRowsAPass, place.col);
#pragma unroll
        for (int e = 0; e < kPer; ++e) v[e] = bn.apply(v[e], e);
        if constexpr (Config::kProjects) {
          float shortcut[kPer];
          projected_slab.read(shortcut, place.row + pass * Place::kRowsAPass, place.col);
#pragma unroll
          for (int e = 0; e < kPer; ++e) v[e] += projection_bn.apply(shortcut[e], e);
        } else if (p.residual) {
#pragma unroll
          for (int e = 0; e < kPer; ++e) v[e] += residual[pass].get(e);
        }
        if (p.relu) {
#pragma unroll
          for (int e = 0; e < kPer; ++e) v[e] = relu_of(v[e]);
        }
        if (inside[pass]) Config::Data::store(static_cast<char*>(p.out) + at[pass], v);
      }
      ptx::bar_warp_sync(~0u);  // before the next fragment row overwrites the slab
    }
  }
};

// A slice of a split-K convolution: stores partial sums, which conv_finish adds to those of the other slices.
template <typename Config>
__device__ __forceinline__ void store_partial(const typename Config::Warp& warp, const ConvFwdParams& p, int32_t slice,
                                              unsigned char* ring, int32_t m0, int32_t n0) {
  using Place = WarpPlace<Config, 4>;
  using Slab = Transpose<Config::kWarpN>;
  using Data = Chunk<Dtype::kFloat32, 4>;
  const Place place(m0, n0);
  const int32_t pixels = p.main.shape.n * p.main.shape.p * p.main.shape.q, k = p.main.shape.k;
  const Slab slab{reinterpret_cast<float*>(ring + place.part * Slab::kBytes)};
  char* out = reinterpret_cast<char*>(p.partials) + static_cast<uint64_t>(slice) * pixels * k * sizeof(float);
#pragma unroll
  for (int i = 0; i < Config::Warp::kFragmentRows; ++i) {
    slab.write(warp.sum[i], place.lane);
    ptx::bar_warp_sync(~0u);
#pragma unroll
    for (int pass = 0; pass < Place::kPasses; ++pass) {
      const int32_t m = place.m + i * 16 + pass * Place::kRowsAPass;
      float v[4];
      slab.read(v, place.row + pass * Place::kRowsAPass, place.col);
      if (m < pixels && place.n < k) Data::store(out + (static_cast<uint64_t>(m) * k + place.n) * sizeof(float), v);
    }
    ptx::bar_warp_sync(~0u);
  }
}

}  // namespace resnet_fused::cuda
