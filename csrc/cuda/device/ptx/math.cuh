// Conversions and arithmetic. Names give the rounding: rn is to nearest, ties to even.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ float cvt_f32_f16(uint16_t v) {
  float d;
  asm("cvt.f32.f16 %0, %1;" : "=f"(d) : "h"(v));
  return d;
}

// A bfloat16 is the upper half of a float.
__device__ __forceinline__ float cvt_f32_bf16(uint16_t v) {
  float d;
  asm("mov.b32 %0, {%1, %2};" : "=f"(d) : "h"(static_cast<uint16_t>(0)), "h"(v));
  return d;
}

__device__ __forceinline__ uint16_t cvt_rn_f16_f32(float v) {
  uint16_t d;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(d) : "f"(v));
  return d;
}

__device__ __forceinline__ uint16_t cvt_rn_bf16_f32(float v) {
  uint16_t d;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(d) : "f"(v));
  return d;
}

// Converts and packs two values: lo to bits 0..15, hi to bits 16..31.
__device__ __forceinline__ uint32_t cvt_rn_f16x2_f32(float lo, float hi) {
  uint32_t d;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}

__device__ __forceinline__ uint32_t cvt_rn_bf16x2_f32(float lo, float hi) {
  uint32_t d;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}

// The same for max(lo, 0) and max(hi, 0). NaN stays NaN.
__device__ __forceinline__ uint32_t cvt_rn_relu_f16x2_f32(float lo, float hi) {
  uint32_t d;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}

__device__ __forceinline__ uint32_t cvt_rn_relu_bf16x2_f32(float lo, float hi) {
  uint32_t d;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
  return d;
}

// Bits of v rounded to tf32 (8-bit exponent, 10-bit fraction), ties away from zero.
__device__ __forceinline__ uint32_t cvt_rna_tf32_f32(float v) {
  uint32_t d;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(d) : "f"(v));
  return d;
}

__device__ __forceinline__ float mov_f32_b32(uint32_t v) {
  float d;
  asm("mov.b32 %0, %1;" : "=f"(d) : "r"(v));
  return d;
}

__device__ __forceinline__ uint32_t mov_b32_f32(float v) {
  uint32_t d;
  asm("mov.b32 %0, %1;" : "=r"(d) : "f"(v));
  return d;
}

// Maximum of a and b; NaN if either is NaN.
__device__ __forceinline__ float max_nan(float a, float b) {
  float d;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
  return d;
}

__device__ __forceinline__ float fma_rn(float a, float b, float c) {
  float d;
  asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(a), "f"(b), "f"(c));
  return d;
}

__device__ __forceinline__ double fma_rn(double a, double b, double c) {
  double d;
  asm("fma.rn.f64 %0, %1, %2, %3;" : "=d"(d) : "d"(a), "d"(b), "d"(c));
  return d;
}

__device__ __forceinline__ float sqrt_rn(float v) {
  float d;
  asm("sqrt.rn.f32 %0, %1;" : "=f"(d) : "f"(v));
  return d;
}

__device__ __forceinline__ double sqrt_rn(double v) {
  double d;
  asm("sqrt.rn.f64 %0, %1;" : "=d"(d) : "d"(v));
  return d;
}

__device__ __forceinline__ float rcp_rn(float v) {
  float d;
  asm("rcp.rn.f32 %0, %1;" : "=f"(d) : "f"(v));
  return d;
}

__device__ __forceinline__ double rcp_rn(double v) {
  double d;
  asm("rcp.rn.f64 %0, %1;" : "=d"(d) : "d"(v));
  return d;
}

}  // namespace resnet_fused::cuda::ptx
