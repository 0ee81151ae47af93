// BatchNorm as scale and shift of a range of channels, in shared memory, for threads whose channels change.
#pragma once
#include "cuda/device/tile/scale_shift.cuh"

namespace resnet_fused::cuda {

struct ChannelTable {
  float* scale;
  float* shift;

  // `memory` holds 2 * channels floats.
  __device__ __forceinline__ ChannelTable(unsigned char* memory, int32_t channels)
      : scale(reinterpret_cast<float*>(memory)), shift(scale + channels) {}

  // Fills entry i with channel first + i of bn, or with zeros if that is at or past `end`. A barrier must follow.
  template <Dtype kDtype>
  __device__ __forceinline__ void fill(const BatchNormVectors& bn, int32_t first, int32_t channels, int32_t end,
                                       int32_t thread, int32_t threads) const {
    for (int32_t i = thread; i < channels; i += threads) {
      float one_scale = 0, one_shift = 0;
      if (first + i < end) {
        const ScaleShift<kDtype, 1> bn_of_channel(bn, first + i);
        one_scale = bn_of_channel.scale[0], one_shift = bn_of_channel.shift[0];
      }
      scale[i] = one_scale, shift[i] = one_shift;
    }
  }
};

// kCount consecutive entries in registers; kCount and i are multiples of 4.
template <int kCount>
struct ChannelRegisters {
  float scale[kCount], shift[kCount];

  __device__ __forceinline__ ChannelRegisters(const ChannelTable& table, int32_t i) {
#pragma unroll
    for (int e = 0; e < kCount; e += 4) {
      const float4 a = *reinterpret_cast<const float4*>(table.scale + i + e);
      const float4 b = *reinterpret_cast<const float4*>(table.shift + i + e);
      scale[e] = a.x, scale[e + 1] = a.y, scale[e + 2] = a.z, scale[e + 3] = a.w;
      shift[e] = b.x, shift[e + 1] = b.y, shift[e + 2] = b.z, shift[e + 3] = b.w;
    }
  }

  __device__ __forceinline__ float apply(float v, int i) const { return ptx::fma_rn(v, scale[i], shift[i]); }
};

}  // namespace resnet_fused::cuda
