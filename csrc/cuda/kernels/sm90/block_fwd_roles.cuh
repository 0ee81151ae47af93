// Warp roles of block_fwd. Roles synchronise only through mbarriers.
#pragma once
#include "cuda/device/ptx/cluster.cuh"
#include "cuda/device/ptx/cp_async.cuh"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/mbarrier.cuh"
#include "cuda/device/ptx/mma.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/stmatrix.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/device/tile/scale_shift.cuh"
#include "cuda/device/tile/smem_descriptor.cuh"
#include "cuda/device/types.h"
#include "cuda/kernels/sm90/block_fwd_config.cuh"
#include "cuda/kernels/sm90/epilogue.cuh"
#include "cuda/kernels/sm90/product.cuh"

namespace resnet_fused::cuda {

struct BlockFwdMaps {
  TensorMap weight[2];  // output channels x (taps x input channels)
};

// One thread: loads the weights of both convolutions in the order of their use, once if they are resident, else in
// every round. Each CTA of a cluster multicasts its share of a stage to all CTAs.
template <typename Config>
__device__ __forceinline__ void load_weights(const BlockFwdMaps& maps, int32_t rounds, uint32_t smem,
                                             const BlockFwdBarriers<Config>& barriers) {
  constexpr int kShare = Config::kChannels / Config::kCluster;  // output channels
  const int32_t steps = 2 * Config::kStepsOfConv * (Config::kKeepsWeights ? 1 : rounds);
  const uint32_t rank = Config::kCluster > 1 ? ptx::cluster_rank() : 0;
  WeightCursor<Config> at;
  for (int32_t i = 0; i < steps; ++i, at.next()) {
    const TensorMap& map = maps.weight[i / Config::kStepsOfConv % 2];
    const int32_t depth = i % Config::kStepsOfConv * kBlockFwdDepth;
    const uint32_t full = barriers.weights(at.stage);
    const uint32_t place = smem + at.stage * Config::kStageBytes + rank * kShare * kRowBytes;
    if constexpr (!Config::kKeepsWeights) ptx::mbarrier_wait_parity(barriers.free(at.stage), at.parity ^ 1);
    ptx::mbarrier_arrive_expect_tx(full, Config::kStageBytes);
    if constexpr (Config::kCluster > 1)
      ptx::tma_load_multicast_2d(place, map, full, depth, rank * kShare, (1 << Config::kCluster) - 1);
    else
      ptx::tma_load_2d(place, map, full, depth, 0);
  }
}

// Loads one tile's patch. Neighbouring threads load the chunks of one pixel. Pixels outside the image are zero-filled.
template <typename Config>
__device__ __forceinline__ void load_patch(const BlockFwdParams& p, const BlockFwdScheduler<Config>& scheduler,
                                           uint32_t thread, const typename Config::Patch& patch) {
  constexpr uint32_t kChunks = Config::kChunks;
  const PositionGrid grid(scheduler.tiling.pitch);
  const int32_t y0 = scheduler.y() - 2, x0 = scheduler.x() - 2, image = scheduler.image();
  const auto* pixels = static_cast<const char*>(p.x);
  const uint32_t count = (scheduler.tiling.rows + 4) * scheduler.tiling.pitch * kChunks;
  for (uint32_t i = thread; i < count; i += Config::kLoaders) {
    const uint32_t chunk = i % kChunks, position = i / kChunks;
    const int32_t y = y0 + grid.row(position), x = x0 + grid.column(position);
    const bool inside =
        static_cast<uint32_t>(y) < static_cast<uint32_t>(p.h) && static_cast<uint32_t>(x) < static_cast<uint32_t>(p.w);
    const int64_t pixel = inside ? (static_cast<int64_t>(image) * p.h + y) * p.w + x : 0;
    ptx::cp_async_cg_16(patch.at(chunk, position), pixels + (pixel * kChunks + chunk) * kChunkBytes, inside);
  }
}

// Three warps: load each team's next patch as soon as the team has read the previous one.
template <typename Config>
__device__ __forceinline__ void load_patches(const BlockFwdParams& p, const BlockFwdTiling& tiling, uint32_t smem,
                                             uint32_t thread, const BlockFwdBarriers<Config>& barriers) {
  uint32_t parity = 0;
  BlockFwdScheduler<Config> first(tiling, p.n, 0);
  for (int32_t round = first.rounds(); round > 0; --round, first.next(), parity ^= 1) {
    for (int team = 0; team < Config::kTeams; ++team) {
      BlockFwdScheduler<Config> scheduler = first;
      scheduler.tile += team * gridDim.x;
      if (!scheduler.has_tile()) continue;
      ptx::mbarrier_wait_parity(barriers.empty(team), parity ^ 1);
      load_patch<Config>(p, scheduler, thread, Config::patch(smem, team));
      ptx::cp_async_commit_group();
      ptx::cp_async_wait_group<0>();
      ptx::fence_proxy_async();  // wgmma reads through the async proxy
      ptx::mbarrier_arrive(barriers.full(team));
    }
  }
}

// Tells every CTA that writes to this stage that this warp has read it.
template <typename Config>
__device__ __forceinline__ void release(int stage, uint32_t lane, const BlockFwdBarriers<Config>& barriers) {
  if (lane < Config::kCluster) ptx::mbarrier_arrive_cluster(ptx::mapa(barriers.free(stage), lane));
}

// For a CTA without a tile: weights are multicast to it all the same, so it waits for each stage and releases it
// unread.
template <typename Config>
__device__ __forceinline__ void pass_weights(uint32_t lane, const BlockFwdBarriers<Config>& barriers,
                                             WeightCursor<Config>& at) {
  for (int step = 0; step < 2 * Config::kStepsOfConv; ++step, at.next()) {
    ptx::mbarrier_wait_parity(barriers.weights(at.stage), at.parity);
    ptx::bar_warp_sync(~0u);  // all lanes wait before the release, else a late lane could miss this phase
    release<Config>(at.stage, lane, barriers);
  }
}

// sum = one convolution's product: this warp group's 64 output channels at the first kColumns positions.
template <typename Config, int kColumns, typename Pixels>
__device__ __forceinline__ void multiply(float (&sum)[kColumns / 2], const Pixels& pixels, uint32_t pitch,
                                         uint32_t smem, uint32_t group, uint32_t lane,
                                         const BlockFwdBarriers<Config>& barriers, WeightCursor<Config>& at) {
  constexpr int kStepsOfTap = Config::kChannels / kBlockFwdDepth;
  const uint64_t weights = smem_descriptor<Swizzle::k128>(smem + group * 64 * kRowBytes);
  const uint64_t first = pixels.operand(0, 0);
  int last = 0;
  for (int tap = 0; tap < kBlockFwdTaps; ++tap) {
    const uint64_t tap_pixels = moved(first, pixels.offset(0, tap / 3 * pitch + tap % 3));
#pragma unroll
    for (int d = 0; d < kStepsOfTap; ++d, at.next()) {
      const uint64_t stage_weights = moved(weights, at.stage * Config::kStageBytes);
      ptx::mbarrier_wait_parity(barriers.weights(at.stage), at.parity);
      ptx::wgmma_fence();
#pragma unroll
      for (uint32_t k = 0; k < kRowChunks; k += 2)
        wgmma<Config::kDtype, kColumns>(sum, moved(stage_weights, k * kChunkBytes),
                                        moved(tap_pixels, pixels.offset(d * kRowChunks + k, 0)),
                                        tap > 0 || d > 0 || k > 0);
      ptx::wgmma_commit_group();
      if constexpr (!Config::kKeepsWeights) {
        // The previous step's wgmmas have completed: release its stage.
        ptx::wgmma_wait_group<1>();
        if (tap > 0 || d > 0) release<Config>(last, lane, barriers);
        last = at.stage;
      }
    }
  }
  ptx::wgmma_wait_group<0>();
  if constexpr (!Config::kKeepsWeights) release<Config>(last, lane, barriers);
}

// The row that a lane addresses for ldmatrix.trans or stmatrix.trans on 8x8 pieces j and j + 1 of a product. The
// product's rows are channels, the planes' rows are positions, so both instructions transpose. Words 0 and 1 hold piece
// j, the warp's first and second eight channels; words 2 and 3 hold piece j + 1.
struct PieceRows {
  uint32_t chunk, position;

  __device__ __forceinline__ PieceRows(uint32_t warp, uint32_t lane)
      : chunk(warp * 2 + lane / 8 % 2), position(lane / 16 * 8 + lane % 8) {}
};

// Stores relu(bn(sum)), rounded once, as the second convolution's input. Outside the image that is padding: zero.
template <typename Config>
__device__ __forceinline__ void store_middle(const float (&sum)[Config::kFirst / 2],
                                             const RowAffine<Config::kDtype>& bn, const BlockFwdParams& p,
                                             const BlockFwdScheduler<Config>& scheduler, uint32_t warp, uint32_t lane,
                                             const typename Config::Middle& middle) {
  using Pair = Chunk<Config::kDtype, 8>;  // four words, two elements each
  const PieceRows rows(warp, lane);
  const PositionGrid grid(scheduler.tiling.pitch);
  const int32_t y0 = scheduler.y() - 1, x0 = scheduler.x() - 1;
#pragma unroll
  for (uint32_t j = 0; j < Config::kFirst / 8; j += 2) {
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const uint32_t position = (j + e / 4) * 8 + lane % 4 * 2 + e % 2;
      const int32_t y = y0 + grid.row(position), x = x0 + grid.column(position);
      const bool inside = static_cast<uint32_t>(y) < static_cast<uint32_t>(p.h) &&
                          static_cast<uint32_t>(x) < static_cast<uint32_t>(p.w);
      v[e] = inside ? bn.apply(sum[j * 4 + e], e / 2 % 2) : 0.0f;
    }
    Pair packed;
    Pair::pack_relu(packed.words, v);
    ptx::stmatrix_x4_trans(middle.at(rows.chunk, j * 8 + rows.position), packed.words);
  }
}

// The shortcut: the tile's pixels without the patch's halo.
template <typename Config>
using Shortcut = Chunk<Config::kDtype, 8>[Config::kSecond / 16];

template <typename Config>
__device__ __forceinline__ void read_shortcut(Shortcut<Config>& shortcut, uint32_t pitch, uint32_t warp, uint32_t lane,
                                              const typename Config::Patch& patch) {
  const PieceRows rows(warp, lane);
#pragma unroll
  for (uint32_t i = 0; i < Config::kSecond / 16; ++i)
    ptx::ldmatrix_x4_trans(shortcut[i].words, patch.at(rows.chunk, i * 16 + rows.position + 2 * pitch + 2));
}

// Stores relu(bn(sum) + shortcut), rounded once. Each warp transposes in its own planes of the intermediate, which no
// warp reads any more, then stores 32 bytes of every pixel. The next tile's intermediate is written there only after
// the warp barrier in front of the patch's release.
template <typename Config>
__device__ __forceinline__ void store_out(const float (&sum)[Config::kSecond / 2], const RowAffine<Config::kDtype>& bn,
                                          const Shortcut<Config>& shortcut, const BlockFwdParams& p,
                                          const BlockFwdScheduler<Config>& scheduler, uint32_t warp, uint32_t lane,
                                          const typename Config::Middle& middle) {
  using Pair = Chunk<Config::kDtype, 8>;
  const PieceRows rows(warp, lane);
#pragma unroll
  for (uint32_t i = 0; i < Config::kSecond / 16; ++i) {
    float v[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = bn.apply(sum[i * 8 + e], e / 2 % 2) + shortcut[i].get(e);
    Pair packed;
    Pair::pack_relu(packed.words, v);
    ptx::stmatrix_x4_trans(middle.at(rows.chunk, i * 16 + rows.position), packed.words);
  }
  ptx::bar_warp_sync(~0u);
  const PositionGrid grid(scheduler.tiling.pitch);
  const uint32_t chunk = warp * 2 + lane % 2;
  const int32_t y0 = scheduler.y(), x0 = scheduler.x();
  const int64_t image = static_cast<int64_t>(scheduler.image()) * p.h;
#pragma unroll
  for (uint32_t i = 0; i < Config::kSecond / 16; ++i) {
    const uint32_t position = i * 16 + lane / 2;
    const int32_t row = grid.row(position), column = grid.column(position), y = y0 + row, x = x0 + column;
    if (row >= scheduler.tiling.rows || column >= scheduler.tiling.columns || y >= p.h || x >= p.w) continue;
    uint32_t words[4];
    ptx::ld_shared_v4(words, middle.at(chunk, position));
    ptx::st_global_v4(static_cast<char*>(p.out) + (((image + y) * p.w + x) * Config::kChunks + chunk) * kChunkBytes,
                      words);
  }
}

// A team of consumer warp groups: computes both convolutions, tile after tile.
template <typename Config>
__device__ __forceinline__ void consume(const BlockFwdParams& p, const BlockFwdTiling& tiling, uint32_t smem,
                                        const BlockFwdBarriers<Config>& barriers) {
  const uint32_t team = threadIdx.x / Config::kTeamThreads, warp = threadIdx.x % Config::kTeamThreads / 32;
  const uint32_t group = warp / 4, lane = threadIdx.x % 32;
  const auto patch = Config::patch(smem, team);
  const auto middle = Config::middle(smem, team);
  const int32_t channel = warp * 16 + lane / 4;
  const RowAffine<Config::kDtype> bn1(p.bn[0], channel, Config::kChannels), bn2(p.bn[1], channel, Config::kChannels);
  uint32_t parity = 0;
  WeightCursor<Config> at;
  BlockFwdScheduler<Config> scheduler(tiling, p.n, team);
  for (int32_t round = scheduler.rounds(); round > 0; --round, scheduler.next(), parity ^= 1) {
    if (!scheduler.has_tile()) {
      if constexpr (!Config::kKeepsWeights) pass_weights<Config>(lane, barriers, at);
      continue;
    }
    Shortcut<Config> shortcut;
    {
      float sum[Config::kFirst / 2];
      ptx::mbarrier_wait_parity(barriers.full(team), parity);
      multiply<Config, Config::kFirst>(sum, patch, tiling.pitch, smem, group, lane, barriers, at);
      read_shortcut<Config>(shortcut, tiling.pitch, warp, lane, patch);
      ptx::bar_warp_sync(~0u);
      if (lane == 0) ptx::mbarrier_arrive(barriers.empty(team));
      store_middle<Config>(sum, bn1, p, scheduler, warp, lane, middle);
    }
    ptx::fence_proxy_async();  // wgmma reads the intermediate through the async proxy
    ptx::bar_sync(1 + team, Config::kTeamThreads);
    float sum[Config::kSecond / 2];
    multiply<Config, Config::kSecond>(sum, middle, tiling.pitch, smem, group, lane, barriers, at);
    ptx::bar_sync(1 + team, Config::kTeamThreads);  // the team has read the intermediate
    store_out<Config>(sum, bn2, shortcut, p, scheduler, warp, lane, middle);
  }
}

}  // namespace resnet_fused::cuda
