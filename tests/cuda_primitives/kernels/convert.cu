// Conversions and rounding: one word in, one word out.
#include "call.h"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/math.cuh"
#include "cuda/runtime/launch.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

// 16-bit values are in the low half. For packed conversions, the second float is the negated input.
struct F32OfF16 {
  __device__ __forceinline__ static uint32_t of(uint32_t v) {
    return ptx::mov_b32_f32(ptx::cvt_f32_f16(static_cast<uint16_t>(v)));
  }
};
struct F32OfBf16 {
  __device__ __forceinline__ static uint32_t of(uint32_t v) {
    return ptx::mov_b32_f32(ptx::cvt_f32_bf16(static_cast<uint16_t>(v)));
  }
};
struct F16OfF32 {
  __device__ __forceinline__ static uint32_t of(uint32_t v) { return ptx::cvt_rn_f16_f32(ptx::mov_f32_b32(v)); }
};
struct Bf16OfF32 {
  __device__ __forceinline__ static uint32_t of(uint32_t v) { return ptx::cvt_rn_bf16_f32(ptx::mov_f32_b32(v)); }
};
struct F16x2OfF32 {
  __device__ __forceinline__ static uint32_t of(uint32_t v) {
    return ptx::cvt_rn_f16x2_f32(ptx::mov_f32_b32(v), ptx::mov_f32_b32(v ^ 0x80000000));
  }
};
struct Bf16x2OfF32 {
  __device__ __forceinline__ static uint32_t of(uint32_t v) {
    return ptx::cvt_rn_bf16x2_f32(ptx::mov_f32_b32(v), ptx::mov_f32_b32(v ^ 0x80000000));
  }
};
struct ReluF16x2OfF32 {
  __device__ __forceinline__ static uint32_t of(uint32_t v) {
    return ptx::cvt_rn_relu_f16x2_f32(ptx::mov_f32_b32(v), ptx::mov_f32_b32(v ^ 0x80000000));
  }
};
struct ReluBf16x2OfF32 {
  __device__ __forceinline__ static uint32_t of(uint32_t v) {
    return ptx::cvt_rn_relu_bf16x2_f32(ptx::mov_f32_b32(v), ptx::mov_f32_b32(v ^ 0x80000000));
  }
};
struct Tf32OfF32 {
  __device__ __forceinline__ static uint32_t of(uint32_t v) { return ptx::cvt_rna_tf32_f32(ptx::mov_f32_b32(v)); }
};
struct Sqrt {
  __device__ __forceinline__ static uint32_t of(uint32_t v) {
    return ptx::mov_b32_f32(ptx::sqrt_rn(ptx::mov_f32_b32(v)));
  }
};
struct Reciprocal {
  __device__ __forceinline__ static uint32_t of(uint32_t v) {
    return ptx::mov_b32_f32(ptx::rcp_rn(ptx::mov_f32_b32(v)));
  }
};

// Each thread converts 4 words.
template <typename Operation>
__global__ void __launch_bounds__(128) convert_kernel(const char* in, char* out, int quads) {
  const int i = static_cast<int>(blockIdx.x) * 128 + static_cast<int>(threadIdx.x);
  if (i >= quads) return;
  uint32_t words[4];
  ptx::ld_global_v4(words, in + i * 16);
  for (uint32_t& w : words) w = Operation::of(w);
  ptx::st_global_v4(out + i * 16, words);
}

template <typename Operation>
void convert(const Call& c) {
  const int quads = c.number(0) / 4;
  LAUNCH(convert_kernel<Operation>, (quads + 127) / 128, 128, 0, nullptr, static_cast<const char*>(c.in(0)),
         static_cast<char*>(c.out(1)), quads);
}

const Primitive registered[] = {{"cvt_f32_f16", convert<F32OfF16>},
                                {"cvt_f32_bf16", convert<F32OfBf16>},
                                {"cvt_rn_f16_f32", convert<F16OfF32>},
                                {"cvt_rn_bf16_f32", convert<Bf16OfF32>},
                                {"cvt_rn_f16x2_f32", convert<F16x2OfF32>},
                                {"cvt_rn_bf16x2_f32", convert<Bf16x2OfF32>},
                                {"cvt_rn_relu_f16x2_f32", convert<ReluF16x2OfF32>},
                                {"cvt_rn_relu_bf16x2_f32", convert<ReluBf16x2OfF32>},
                                {"cvt_rna_tf32_f32", convert<Tf32OfF32>},
                                {"sqrt_rn", convert<Sqrt>},
                                {"rcp_rn", convert<Reciprocal>}};

}  // namespace
}  // namespace cuda_primitives
