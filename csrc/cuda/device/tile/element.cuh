// Loads and stores of one element or of 16 bytes of elements: Dtype in memory, float in registers (double for float64).
#pragma once
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/math.cuh"
#include "cuda/device/types.h"

namespace resnet_fused::cuda {

// kReadOnly: read-only while the kernel runs. kReused: the same, and other threads of the SM read the data too.
enum class Access { kPlain, kReadOnly, kReused };

// NaN passes, as in torch.relu.
__device__ __forceinline__ float relu_of(float v) { return ptx::max_nan(v, 0.0f); }
__device__ __forceinline__ double relu_of(double v) { return v < 0 ? 0 : v; }

// The largest value that rounds to 0 in kDtype. A ReLU counts as open only for larger inputs: the backward pass
// recomputes them in more digits than were stored, and must agree with the stored output about where the ReLU was open.
template <Dtype kDtype>
constexpr float kVanishes = 0;
template <>
constexpr float kVanishes<Dtype::kFloat16> = 0x1p-25f;
template <>
constexpr float kVanishes<Dtype::kBFloat16> = 0x1p-134f;

template <Dtype kDtype>
struct Arithmetic {
  using Type = float;
};
template <>
struct Arithmetic<Dtype::kFloat64> {
  using Type = double;
};

template <Dtype kDtype, Access kAccess>
__device__ __forceinline__ typename Arithmetic<kDtype>::Type load_element(const char* address) {
  constexpr bool kNc = kAccess != Access::kPlain;
  if constexpr (kDtype == Dtype::kFloat64) {
    return kNc ? ptx::ld_global_nc_f64(address) : ptx::ld_global_f64(address);
  } else if constexpr (kDtype == Dtype::kFloat32) {
    return kNc ? ptx::ld_global_nc_f32(address) : ptx::ld_global_f32(address);
  } else {
    const uint16_t bits = kNc ? ptx::ld_global_nc_u16(address) : ptx::ld_global_u16(address);
    return kDtype == Dtype::kFloat16 ? ptx::cvt_f32_f16(bits) : ptx::cvt_f32_bf16(bits);
  }
}

template <Dtype kDtype>
__device__ __forceinline__ void store_element(char* address, typename Arithmetic<kDtype>::Type v) {
  if constexpr (kDtype == Dtype::kFloat64)
    ptx::st_global_f64(address, v);
  else if constexpr (kDtype == Dtype::kFloat32)
    ptx::st_global_f32(address, v);
  else
    ptx::st_global_u16(address, kDtype == Dtype::kFloat16 ? ptx::cvt_rn_f16_f32(v) : ptx::cvt_rn_bf16_f32(v));
}

// kCount consecutive elements, kept as loaded (16 bytes in 4 registers) until get() widens one.
template <Dtype kDtype, int kCount>
struct Chunk {
  using Acc = typename Arithmetic<kDtype>::Type;
  static constexpr int kPerWord = 4 / kSizeOf<kDtype>;
  static_assert(kCount * kSizeOf<kDtype> == 16 && kPerWord >= 1,
                "a chunk is one 16-byte access of 2- or 4-byte elements");

  uint32_t words[4];

  template <Access kAccess>
  __device__ __forceinline__ void load(const char* address) {
    if constexpr (kAccess == Access::kReadOnly)
      ptx::ld_global_nc_v4(words, address);
    else if constexpr (kAccess == Access::kReused)
      ptx::ld_global_nc_cached_v4(words, address);
    else
      ptx::ld_global_v4(words, address);
  }

  __device__ __forceinline__ Acc get(int i) const {
    if constexpr (kDtype == Dtype::kFloat32) {
      return ptx::mov_f32_b32(words[i]);
    } else if constexpr (kDtype == Dtype::kBFloat16) {
      // A bfloat16 is the upper half of a float, so one shift or mask is enough, unlike a conversion of 16 bits.
      return ptx::mov_f32_b32(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
    } else {
      return ptx::cvt_f32_f16(static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16)));
    }
  }

  __device__ __forceinline__ static void pack(uint32_t (&out)[4], const Acc (&v)[kCount]) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (kDtype == Dtype::kFloat32)
        out[w] = ptx::mov_b32_f32(v[w]);
      else if constexpr (kDtype == Dtype::kFloat16)
        out[w] = ptx::cvt_rn_f16x2_f32(v[2 * w], v[2 * w + 1]);
      else
        out[w] = ptx::cvt_rn_bf16x2_f32(v[2 * w], v[2 * w + 1]);
    }
  }

  // pack() of relu_of(v). The 16-bit types have ReLU in the conversion instruction.
  __device__ __forceinline__ static void pack_relu(uint32_t (&out)[4], const Acc (&v)[kCount]) {
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (kDtype == Dtype::kFloat32)
        out[w] = ptx::mov_b32_f32(relu_of(v[w]));
      else if constexpr (kDtype == Dtype::kFloat16)
        out[w] = ptx::cvt_rn_relu_f16x2_f32(v[2 * w], v[2 * w + 1]);
      else
        out[w] = ptx::cvt_rn_relu_bf16x2_f32(v[2 * w], v[2 * w + 1]);
    }
  }

  __device__ __forceinline__ static void store(char* address, const Acc (&v)[kCount]) {
    uint32_t out[4];
    pack(out, v);
    ptx::st_global_v4(address, out);
  }
};

template <Dtype kDtype>
struct Chunk<kDtype, 1> {
  using Acc = typename Arithmetic<kDtype>::Type;

  Acc value;

  template <Access kAccess>
  __device__ __forceinline__ void load(const char* address) {
    value = load_element<kDtype, kAccess>(address);
  }
  __device__ __forceinline__ Acc get(int) const { return value; }
  __device__ __forceinline__ static void store(char* address, const Acc (&v)[1]) {
    store_element<kDtype>(address, v[0]);
  }
};

}  // namespace resnet_fused::cuda
