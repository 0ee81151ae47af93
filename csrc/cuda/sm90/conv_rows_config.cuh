// What one compiled sm90/conv_rows kernel is made of.
#pragma once
#include "cuda/sm90/conv_rows.h"
#include "cuda/tile/swizzle.cuh"

namespace resnet_fused::cuda {

template <Dtype kDtype_, int kTile_>
struct ConvRowsConfig {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr ConvRowsTile kTile = kConvRowsTiles[kTile_];
  static constexpr bool kProjects = false;  // as sm90/epilogue.cuh asks

  static constexpr int kRows = kTile.rows, kTileColumns = kTile.columns;
  static constexpr int kColumns = conv_rows_pixels(kTile);  // of the product: pixels

  // Of shared memory, in bytes from its start; tiles of TMA and wgmma lie at multiples of 1024.
  static constexpr uint32_t kTapBytes = kConvRowsChannels * kRowBytes;  // of the filter, at its start
  static constexpr uint32_t kPatch = kConvRowsFilterBytes, kPatchBytes = conv_rows_patch_bytes(kTile);
  static constexpr uint32_t kPatchRowBytes = kTileColumns * kRowBytes;
  static constexpr uint32_t kOut = kPatch + kConvRowsStages * kPatchBytes, kOutBytes = conv_rows_out_bytes(kTile);
  static constexpr uint32_t kBarriers = kOut + kOutBytes;

  using Sum = float[kColumns / 2];

  static_assert(kConvRowsRowBytes == kRowBytes && kConvRowsChannels * kSizeOf<kDtype> == kRowBytes);
  static_assert(kPatchRowBytes % 1024 == 0 && kColumns <= 256);
};

// Barriers, each 8 bytes.
struct ConvRowsBarriers {
  uint32_t first;

  // A stage's patch has landed; its consumer is done with it.
  __device__ __forceinline__ uint32_t full(int stage) const { return first + 8 * stage; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(kConvRowsStages + stage); }
  // It is this consumer's turn to multiply; its output tile may be written (and holds the residual, if there is one).
  __device__ __forceinline__ uint32_t turn(int consumer) const { return full(2 * kConvRowsStages + consumer); }
  __device__ __forceinline__ uint32_t open(int consumer) const { return turn(kConvRowsConsumers + consumer); }
  // The output tile has been written; the filter has landed.
  __device__ __forceinline__ uint32_t staged() const { return turn(2 * kConvRowsConsumers); }
  __device__ __forceinline__ uint32_t filter() const { return turn(2 * kConvRowsConsumers + 1); }
  static_assert(8 * (2 * kConvRowsStages + 2 * kConvRowsConsumers + 2) <= kConvRowsBarrierBytes);
};

}  // namespace resnet_fused::cuda
