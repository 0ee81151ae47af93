// The 64-bit word that tells wgmma where an operand lies in shared memory (PTX ISA, "Matrix Descriptor Format").
// Operands are K-major: a row is consecutive along K.
#pragma once
#include <cstdint>

#include "cuda/tensor_map.h"

namespace resnet_fused::cuda {

// Rows of width(kSwizzle) bytes, one after another, as TMA writes them with the same swizzle. `address` is that of the
// first row's first element of the step along K: 32 bytes (16 elements) further for each step. The rows' own start is
// a multiple of 8 * width.
// kNone: 8 rows of 16 bytes are one after another, the next 16 bytes of K are `k_stride` bytes further, and the next 8
// rows are `row_stride` bytes further.
template <Swizzle kSwizzle>
__device__ __forceinline__ uint64_t smem_descriptor(uint32_t address, uint32_t k_stride = 16,
                                                    uint32_t row_stride = 8 * static_cast<uint32_t>(kSwizzle)) {
  constexpr uint64_t kLayout = kSwizzle == Swizzle::k128  ? 1
                               : kSwizzle == Swizzle::k64 ? 2
                               : kSwizzle == Swizzle::k32 ? 3
                                                          : 0;
  return (address >> 4 & 0x3fff) | static_cast<uint64_t>(k_stride >> 4 & 0x3fff) << 16 |
         static_cast<uint64_t>(row_stride >> 4 & 0x3fff) << 32 | kLayout << 62;
}

// The operand so many bytes further, a multiple of 16 and within shared memory. The address is the low word's, so that
// one addition of 32 bits is all.
__device__ __forceinline__ uint64_t moved(uint64_t descriptor, uint32_t bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + (bytes >> 4);
  return descriptor >> 32 << 32 | low;
}

// The same where the compiler sees that all threads have the same descriptor: their common registers add 64 bits at
// once.
__device__ __forceinline__ uint64_t moved_uniform(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

}  // namespace resnet_fused::cuda
