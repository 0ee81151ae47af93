// Compile-time configuration of an sm90/conv_sm90 kernel.
#pragma once
#include "cuda/device/tile/element.cuh"
#include "cuda/device/tile/swizzle.cuh"
#include "cuda/kernels/sm90/conv_sm90.h"

namespace resnet_fused::cuda {

template <Dtype kDtype_, int kTile_, Prologue kPrologue_, Epilogue kEpilogue_>
struct ConvSm90Config {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr ConvMode kMode{kPrologue_, kEpilogue_};
  static constexpr ConvSm90Tile kTile = kConvSm90Tiles[kTile_];
  static constexpr bool kProjects = has_projection(kMode), kHasPrologue = has_prologue(kMode);
  static constexpr bool kMainHasPrologue = kHasPrologue && !kProjects,
                        kProjectionHasPrologue = kHasPrologue && kProjects;

  static constexpr int kPixels = kTile.pixels, kChannels = kTile.channels, kStages = kTile.stages;
  static constexpr int kColumns = conv_sm90_columns(kTile, kMode);
  static constexpr bool kPingpong = conv_sm90_pingpong(kTile, kMode);  // ping-pong: a tile per warp group
  // Offset of the second warp group's part of a tile from the first's.
  static constexpr int kPixelStride = kColumns == kPixels ? 0 : kColumns;
  static constexpr int kChannelStride = kColumns == kPixels && !kPingpong ? 64 : 0;
  static constexpr int kReaders = kPingpong ? 4 : 4 * kConvSm90Consumers;  // warps that read a stage
  static constexpr int kThreads = conv_sm90_threads(kMode);

  // Offsets in shared memory, in bytes. Operands of TMA and wgmma are aligned to 1024.
  static constexpr uint32_t kPixelBytes = kPixels * kRowBytes, kStageBytes = (kPixels + kChannels) * kRowBytes;
  static constexpr uint32_t kOutBytes = kColumns * kRowBytes;  // of one warp group: a row of 64 channels per pixel
  static constexpr uint32_t kOut = kStages * kStageBytes;
  static constexpr uint32_t kBarriers = kOut + kConvSm90Consumers * kOutBytes;
  static constexpr uint32_t kTable = kBarriers + kConvSm90BarrierBytes;

  using Sum = float[kColumns / 2];

  static_assert(kConvSm90RowBytes == kRowBytes && kConvSm90Depth * kSizeOf<kDtype> == kRowBytes);
  static_assert(kPixelBytes % 1024 == 0 && kStageBytes % 1024 == 0 && kOutBytes % 1024 == 0);
  static_assert(conv_sm90_takes(kTile, kMode));
};

// Addresses of mbarriers, 8 bytes each.
template <typename Config>
struct ConvSm90Barriers {
  uint32_t first;

  // full: the stage's operands have landed. ready: its prologue has been applied. empty: its readers have read it.
  __device__ __forceinline__ uint32_t full(int stage) const { return first + 8 * stage; }
  __device__ __forceinline__ uint32_t ready(int stage) const { return full(Config::kStages + stage); }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(2 * Config::kStages + stage); }
  // open: the consumer's output tile may be written, and holds the residual if there is one. staged: it has been
  // written.
  __device__ __forceinline__ uint32_t open(int consumer) const { return full(3 * Config::kStages + consumer); }
  __device__ __forceinline__ uint32_t staged(int consumer) const {
    return full(3 * Config::kStages + kConvSm90Consumers + consumer);
  }
  // order (ping-pong): the other consumer has issued its last wgmma; the pipeline's next stages are this one's.
  __device__ __forceinline__ uint32_t order(int consumer) const {
    return full(3 * Config::kStages + 2 * kConvSm90Consumers + consumer);
  }
  static_assert(8 * (3 * Config::kStages + 3 * kConvSm90Consumers) <= kConvSm90BarrierBytes);
};

// A role's position in the pipeline. All roles visit the stages in the same order, tile after tile.
template <int kStages>
struct RingCursor {
  int stage = 0;
  uint32_t parity = 0;  // of the phase that ends when the current content has landed

  __device__ __forceinline__ void next() {
    if (++stage == kStages) stage = 0, parity ^= 1;
  }
};

}  // namespace resnet_fused::cuda
