// Compile-time configuration of a conv_fwd kernel.
#pragma once
#include "cuda/device/tile/element.cuh"
#include "cuda/device/tile/warp_mma.cuh"
#include "cuda/kernels/sm80/conv_fwd.h"

namespace resnet_fused::cuda {

template <Dtype kDtype_, int kTile_, Prologue kPrologue_, Epilogue kEpilogue_>
struct ConvFwdConfig {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr ConvMode kMode{kPrologue_, kEpilogue_};
  static constexpr ConvFwdTile kTile = kConvFwdTiles[kTile_];
  static constexpr bool kProjects = has_projection(kMode), kHasPrologue = has_prologue(kMode);
  static constexpr bool kMainHasPrologue = kHasPrologue && !kProjects,
                        kProjectionHasPrologue = kHasPrologue && kProjects;

  static constexpr int kM = kTile.m, kN = kTile.n, kStages = kTile.stages, kThreads = kTile.threads;
  // Minimum blocks per SM for ptxas; 0 leaves the choice to it. For statistics in blocks of four warps it would then
  // make room for six, although shared memory holds only two, and spill.
  static constexpr int kBlocksPerSm = leaves_parts(kMode) && kThreads == 128 ? 2 : 0;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWarpN = 32, kWarpM = kM * kN / kWarps / kWarpN;  // a warp's part of the tile
  static constexpr int kWarpsN = kN / kWarpN;

  static constexpr int kPerChunk = kChunkBytes / kSizeOf<kDtype>;         // elements
  static constexpr int kCopyRows = kThreads / kRowChunks;                 // rows that the block copies at once
  static constexpr int kRowsA = kM / kCopyRows, kRowsB = kN / kCopyRows;  // rows per thread
  static constexpr uint32_t kBytesA = kM * kRowBytes, kStageBytes = (kM + kN) * kRowBytes;

  using Warp = WarpMma<kDtype, kWarpM, kWarpN>;
  using Data = Chunk<kDtype, kPerChunk>;

  static_assert(kRowBytes == kConvFwdRowBytes);
  static_assert(kWarpM % 16 == 0 && kM % kWarpM == 0 && kN % kWarpN == 0);
  static_assert(kRowsA * kCopyRows == kM && kRowsB * kCopyRows == kN);
  static_assert(kStages >= 3, "at least three stages: one is filled, one read, one has landed");
};

}  // namespace resnet_fused::cuda
