// The 64-bit descriptor of a wgmma operand in shared memory (PTX ISA, "Matrix Descriptor Format"). Operands are
// K-major: a row is contiguous along K.
#pragma once
#include <cstdint>

#include "cuda/device/types.h"

namespace resnet_fused::cuda {

// Swizzled: contiguous rows of width(kSwizzle) bytes, as TMA writes them with the same swizzle, from a multiple of
// 8 * width on. `address` is that of the first row plus 32 bytes (16 elements) for each step along K.
// kNone: 8 rows of 16 bytes are contiguous. The next 16 bytes of K are `k_stride` bytes further, the next 8 rows
// `row_stride` bytes further.
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

// Descriptor of the operand `bytes` further, a multiple of 16; the result must lie within shared memory. The address is
// in the low word, so one 32-bit addition is enough.
__device__ __forceinline__ uint64_t moved(uint64_t descriptor, uint32_t bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + (bytes >> 4);
  return descriptor >> 32 << 32 | low;
}

// The same if the compiler can prove that all threads have the same descriptor: uniform registers add 64 bits at once.
__device__ __forceinline__ uint64_t moved_uniform(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

}  // namespace resnet_fused::cuda
