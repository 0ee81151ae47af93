// kCount consecutive uint8, packed in memory and registers. get() and store() take each as a uint32.
#pragma once
#include "cuda/device/ptx/global.cuh"

namespace resnet_fused::cuda {

template <int kCount>
struct Bytes {
  static_assert(kCount == 1 || kCount == 4 || kCount == 8, "one access");
  static constexpr int kWords = (kCount + 3) / 4;

  uint32_t words[kWords];

  // The memory must be read-only while the kernel runs.
  __device__ __forceinline__ void load(const char* address) {
    if constexpr (kCount == 8)
      ptx::ld_global_nc_v2(words, address);
    else if constexpr (kCount == 4)
      words[0] = ptx::ld_global_nc_u32(address);
    else
      words[0] = ptx::ld_global_nc_u8(address);
  }

  __device__ __forceinline__ uint32_t get(int i) const { return words[i / 4] >> (i % 4 * 8) & 0xff; }

  __device__ __forceinline__ static void store(char* address, const uint32_t (&v)[kCount]) {
    uint32_t packed[kWords] = {};
#pragma unroll
    for (int i = 0; i < kCount; ++i) packed[i / 4] |= v[i] << (i % 4 * 8);
    if constexpr (kCount == 8)
      ptx::st_global_v2(address, packed);
    else if constexpr (kCount == 4)
      ptx::st_global_u32(address, packed[0]);
    else
      ptx::st_global_u8(address, static_cast<uint16_t>(packed[0]));
  }
};

}  // namespace resnet_fused::cuda
