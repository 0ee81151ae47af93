// Pixels as a wgmma operand without swizzle: one plane for every 8 channels, with 16 contiguous bytes per position.
// Eight rows of the operand are 128 contiguous bytes wherever they start, so any run of positions is an operand. A
// filter tap only shifts the start, and all taps read one copy of the pixels.
#pragma once
#include "cuda/device/tile/smem_descriptor.cuh"
#include "cuda/device/tile/swizzle.cuh"

namespace resnet_fused::cuda {

// kPositions must be odd, so that the chunks of a pixel, one per plane, lie in different banks.
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
  // Descriptor of 16 channels from chunk `chunk` on, at the positions from `position` on.
  __device__ __forceinline__ uint64_t operand(uint32_t chunk, uint32_t position) const {
    return smem_descriptor<Swizzle::kNone>(at(chunk, position), kPlaneBytes, 8 * kChunkBytes);
  }
};

}  // namespace resnet_fused::cuda
