// Compile-time configuration of an sm90/conv_rows kernel.
#pragma once
#include "cuda/device/tile/swizzle.cuh"
#include "cuda/kernels/sm90/conv_rows.h"

namespace resnet_fused::cuda {

template <Dtype kDtype_, int kTile_>
struct ConvRowsConfig {
  static constexpr Dtype kDtype = kDtype_;
  static constexpr ConvRowsTile kTile = kConvRowsTiles[kTile_];
  static constexpr bool kProjects = false;  // required by sm90/epilogue.cuh

  static constexpr int kSets = kTile.sets, kStages = kSets * kConvRowsPatches;
  static constexpr int kRows = kTile.rows, kTileColumns = kTile.columns;
  static constexpr int kColumns = conv_rows_pixels(kTile);  // of the product, which are pixels

  // Offsets in shared memory, in bytes. Operands of TMA and wgmma are aligned to 1024.
  static constexpr uint32_t kTapBytes = kConvRowsChannels * kRowBytes;  // one tap; the filter is at offset 0
  static constexpr uint32_t kPatch = kConvRowsFilterBytes, kPatchBytes = conv_rows_patch_bytes(kTile);
  static constexpr uint32_t kPatchRowBytes = kTileColumns * kRowBytes;
  static constexpr uint32_t kOut = kPatch + kStages * kPatchBytes, kOutBytes = conv_rows_out_bytes(kTile);
  static constexpr uint32_t kBarriers = kOut + kSets * kOutBytes;

  using Sum = float[kColumns / 2];

  static_assert(kConvRowsRowBytes == kRowBytes && kConvRowsChannels * kSizeOf<kDtype> == kRowBytes);
  static_assert(kPatchRowBytes % 1024 == 0 && kColumns <= 256 && kSets <= kConvRowsConsumers);

  // The set that holds the CTA's tile number t, and the parity of that set's phase.
  __device__ __forceinline__ static uint32_t set_of(uint32_t t) { return kSets == 1 ? 0 : t % 2; }
  __device__ __forceinline__ static uint32_t parity_of(uint32_t t) { return t / kSets % 2; }
};

// Addresses of mbarriers, 8 bytes each.
template <typename Config>
struct ConvRowsBarriers {
  uint32_t first;

  // full: the stage's patch has landed. empty: its consumer has read it.
  __device__ __forceinline__ uint32_t full(int stage) const { return first + 8 * stage; }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(Config::kStages + stage); }
  // order: this consumer may multiply. open: its output tile may be written, and holds the residual if there is one.
  // staged: its output tile has been written.
  __device__ __forceinline__ uint32_t order(int consumer) const { return full(2 * Config::kStages + consumer); }
  __device__ __forceinline__ uint32_t open(int consumer) const { return order(kConvRowsConsumers + consumer); }
  __device__ __forceinline__ uint32_t staged(int consumer) const { return order(2 * kConvRowsConsumers + consumer); }
  // The filter has landed.
  __device__ __forceinline__ uint32_t filter() const { return order(3 * kConvRowsConsumers); }
  static_assert(8 * (2 * Config::kStages + 3 * kConvRowsConsumers + 1) <= kConvRowsBarrierBytes);
};

}  // namespace resnet_fused::cuda
