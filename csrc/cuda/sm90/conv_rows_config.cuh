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

  static constexpr int kSets = kTile.sets, kStages = kSets * kConvRowsPatches;
  static constexpr int kRows = kTile.rows, kTileColumns = kTile.columns;
  static constexpr int kColumns = conv_rows_pixels(kTile);  // of the product: pixels

  // Of shared memory, in bytes from its start; tiles of TMA and wgmma lie at multiples of 1024.
  static constexpr uint32_t kTapBytes = kConvRowsChannels * kRowBytes;  // of the filter, at its start
  static constexpr uint32_t kPatch = kConvRowsFilterBytes, kPatchBytes = conv_rows_patch_bytes(kTile);
  static constexpr uint32_t kPatchRowBytes = kTileColumns * kRowBytes;
  static constexpr uint32_t kOut = kPatch + kStages * kPatchBytes, kOutBytes = conv_rows_out_bytes(kTile);
  static constexpr uint32_t kBarriers = kOut + kSets * kOutBytes;

  using Sum = float[kColumns / 2];

  static_assert(kConvRowsRowBytes == kRowBytes && kConvRowsChannels * kSizeOf<kDtype> == kRowBytes);
  static_assert(kPatchRowBytes % 1024 == 0 && kColumns <= 256 && kSets <= kConvRowsConsumers);

  // Where a block's tile number t is: which set, and the parity of that set's phase.
  __device__ __forceinline__ static uint32_t set_of(uint32_t t) { return kSets == 1 ? 0 : t % 2; }
  __device__ __forceinline__ static uint32_t parity_of(uint32_t t) { return t / kSets % 2; }
};

// Barriers, each 8 bytes.
template <typename Config>
struct ConvRowsBarriers {
  uint32_t first;

  // A stage's patch has landed; its consumer is done with it.
  __device__ __forceinline__ uint32_t full(int stage) const { return first + 8 * stage; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
  // It is this consumer's turn to multiply; its output tile may be written (and holds the residual, if there is one),
  // and has been written.
  __device__ __forceinline__ uint32_t turn(int consumer) const { return full(2 * Config::kStages + consumer); }
  __device__ __forceinline__ uint32_t open(int consumer) const { return turn(kConvRowsConsumers + consumer); }
  __device__ __forceinline__ uint32_t staged(int consumer) const { return turn(2 * kConvRowsConsumers + consumer); }
  // The filter has landed.
  __device__ __forceinline__ uint32_t filter() const { return turn(3 * kConvRowsConsumers); }
  static_assert(8 * (2 * Config::kStages + 3 * kConvRowsConsumers + 1) <= kConvRowsBarrierBytes);
};

}  // namespace resnet_fused::cuda
