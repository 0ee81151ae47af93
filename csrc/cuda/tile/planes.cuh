// Pixels as a wgmma operand without a swizzle: a plane for every 8 channels, in it 16 bytes a position, one after
// another. Eight rows of such an operand are 128 consecutive bytes wherever they start, so any run of positions is an
// operand: a tap of a filter is an offset of the start, and all taps read one copy of the pixels.
#pragma once
#include "cuda/tile/smem_descriptor.cuh"
#include "cuda/tile/swizzle.cuh"

namespace resnet_fused::cuda {

// kPositions is odd: a pixel's chunks, one a plane, then lie in different banks.
template <int kPositions>
struct Planes {
  static_assert(kPositions % 2 == 1);
  static constexpr uint32_t kPlaneBytes = kPositions * kChunkBytes;

  uint32_t base;

  __device__ __forceinline__ static uint32_t offset(uint32_t chunk, uint32_t position) {
    return chunk * kPlaneBytes + position * kChunkBytes;
  }
  __device__ __forceinline__ uint32_t at(uint32_t chunk, uint32_t position) const {
    return base + offset(chunk, position);
  }
  // 16 channels from chunk on, of the positions from `position` on.
  __device__ __forceinline__ uint64_t operand(uint32_t chunk, uint32_t position) const {
    return smem_descriptor<Swizzle::kNone>(at(chunk, position), kPlaneBytes, 8 * kChunkBytes);
  }
};

}  // namespace resnet_fused::cuda
