// Compile-time configuration of an sm90/block_fwd kernel.
#pragma once
#include "cuda/device/tile/element.cuh"
#include "cuda/device/tile/planes.cuh"
#include "cuda/kernels/sm90/block_fwd.h"

namespace resnet_fused::cuda {

template <Dtype kDtype_, int kShape_>
struct BlockFwdConfig {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr BlockFwdShape kShape = kBlockFwdShapes[kShape_];

  static constexpr int kChannels = kShape.channels, kChunks = kChannels / 8;
  static constexpr int kFirst = kShape.first, kSecond = kShape.second;
  static constexpr int kTeams = kShape.teams, kTeamThreads = kChannels / 64 * 128;
  static constexpr int kConsumers = kTeams * kTeamThreads, kLoaders = 96;  // threads; one more warp loads the weights
  static constexpr bool kKeepsWeights = block_fwd_keeps_weights(kShape);
  static constexpr int kCluster = kShape.cluster;
  static constexpr int kStages = kShape.stages, kStepsOfConv = kBlockFwdTaps * kChannels / kBlockFwdDepth;

  using Patch = Planes<kShape.patch>;
  using Middle = Planes<kShape.middle>;

  // Offsets in shared memory, in bytes. Stages are swizzled, so they are aligned to 1024.
  static constexpr uint32_t kStageBytes = kChannels * kRowBytes;
  static constexpr uint32_t kPixels = kStages * kStageBytes;
  static constexpr uint32_t kPatchBytes = kChunks * Patch::kPlaneBytes, kMiddleBytes = kChunks * Middle::kPlaneBytes;
  static constexpr uint32_t kTeamBytes = kPatchBytes + kMiddleBytes;
  static constexpr uint32_t kBarriers = kPixels + kTeams * kTeamBytes;

  static_assert(kBlockFwdDepth * kSizeOf<kDtype> == kRowBytes && kStageBytes % 1024 == 0 && kBarriers % 8 == 0);
  static_assert(kConsumers == 256 && kConsumers + kLoaders + 32 == kBlockFwdThreads);
  static_assert(kKeepsWeights ? kTeams > 0 && kCluster == 1 : kTeams == 1,
                "with several teams, weights must be resident: teams consume stages in different orders");
  static_assert(kCluster <= 16 && kStageBytes / kCluster % 1024 == 0);
  static_assert(kFirst % 16 == 0 && kSecond % 16 == 0 && kFirst <= kShape.middle && kSecond <= kShape.middle);
  static_assert(kBarriers + kBlockFwdBarrierBytes == block_fwd_smem(kShape));

  __device__ __forceinline__ static Patch patch(uint32_t smem, uint32_t team) {
    return {smem + kPixels + team * kTeamBytes};
  }
  __device__ __forceinline__ static Middle middle(uint32_t smem, uint32_t team) {
    return {smem + kPixels + team * kTeamBytes + kPatchBytes};
  }
};

// Addresses of mbarriers, 8 bytes each.
template <typename Config>
struct BlockFwdBarriers {
  uint32_t first;

  // weights: the stage's weights have landed. free: every warp of the cluster has read them; they may be overwritten.
  __device__ __forceinline__ uint32_t weights(int stage) const { return first + 8 * stage; }
  __device__ __forceinline__ uint32_t free(int stage) const { return weights(Config::kStages + stage); }
  // full: the team's patch has landed. empty: the team's warps have read it.
  __device__ __forceinline__ uint32_t full(int team) const { return free(Config::kStages + team); }
  __device__ __forceinline__ uint32_t empty(int team) const { return full(Config::kTeams + team); }
  static_assert(8 * (2 * Config::kStages + 2 * Config::kTeams) <= kBlockFwdBarrierBytes);
};

// A role's position in the weight pipeline. All roles visit the stages in the same order, tile after tile. Resident
// weights land once, so their parity never flips.
template <typename Config>
struct WeightCursor {
  int stage = 0;
  uint32_t parity = 0;  // of the phase that ends when the current content has landed

  __device__ __forceinline__ void next() {
    if (++stage == Config::kStages) stage = 0, parity ^= Config::kKeepsWeights ? 0 : 1;
  }
};

// The tiles of a team. Tiles go to the first team of every CTA, then to the second, so that few tiles spread over many
// SMs.
template <typename Config>
struct BlockFwdScheduler {
  const BlockFwdTiling& tiling;
  int32_t tiles, tile;

  __device__ __forceinline__ BlockFwdScheduler(const BlockFwdTiling& tiling, int32_t images, int32_t team)
      : tiling(tiling), tiles(images * tiling.tiles_h * tiling.tiles_w), tile(blockIdx.x + team * gridDim.x) {}

  // The same for every CTA, so that clusters stay in step. In the last round, some teams may have no tile.
  __device__ __forceinline__ int32_t rounds() const {
    const int32_t at_once = gridDim.x * Config::kTeams;
    return (tiles + at_once - 1) / at_once;
  }
  __device__ __forceinline__ bool has_tile() const { return tile < tiles; }
  __device__ __forceinline__ void next() { tile += gridDim.x * Config::kTeams; }

  // The tile's first output pixel.
  __device__ __forceinline__ int32_t x() const { return tile % tiling.tiles_w * tiling.columns; }
  __device__ __forceinline__ int32_t y() const { return tile / tiling.tiles_w % tiling.tiles_h * tiling.rows; }
  __device__ __forceinline__ int32_t image() const { return tile / tiling.tiles_w / tiling.tiles_h; }
};

// Row and column of a position. Multiplying by the rounded reciprocal is exact for so few positions.
struct PositionGrid {
  static constexpr uint32_t kOne = 1 << 16, kMostPositions = 256, kMostPitch = 64;
  static_assert(kMostPositions * kMostPitch < kOne);

  uint32_t pitch, reciprocal;

  __device__ __forceinline__ explicit PositionGrid(uint32_t pitch) : pitch(pitch), reciprocal(kOne / pitch + 1) {}

  __device__ __forceinline__ int32_t row(uint32_t position) const {
    return static_cast<int32_t>(position * reciprocal / kOne);
  }
  __device__ __forceinline__ int32_t column(uint32_t position) const {
    return static_cast<int32_t>(position - row(position) * pitch);
  }
};

}  // namespace resnet_fused::cuda
