// An operand tile in shared memory: rows of 128 bytes, that is eight 16-byte chunks along the GEMM's depth.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda {

constexpr uint32_t kChunkBytes = 16;
constexpr uint32_t kRowChunks = 8;
constexpr uint32_t kRowBytes = kRowChunks * kChunkBytes;

// Chunk c of row r lies at place c ^ (r % 8). Eight chunks of one row (a copy) touch each bank once, and so does one
// chunk of eight rows (ldmatrix): no bank conflicts. This is also the 128-byte swizzle of TMA and wgmma.
__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk) {
  return row * kRowBytes + (chunk ^ (row % kRowChunks)) * kChunkBytes;
}

}  // namespace resnet_fused::cuda
