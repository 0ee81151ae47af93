// The emulated twin of csrc/cuda/device/ptx/math.cuh. All operations follow IEEE 754, so results equal a GPU's, except
// for the payload of NaNs.
#pragma once
#include <cmath>
#include <cstring>

#include "cuda_on_cpu.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ float mov_f32_b32(uint32_t v) {
  float d;
  std::memcpy(&d, &v, 4);
  return d;
}

__device__ __forceinline__ uint32_t mov_b32_f32(float v) {
  uint32_t d;
  std::memcpy(&d, &v, 4);
  return d;
}

__device__ __forceinline__ float cvt_f32_f16(uint16_t v) {
  _Float16 h;
  std::memcpy(&h, &v, 2);
  return static_cast<float>(h);
}

__device__ __forceinline__ float cvt_f32_bf16(uint16_t v) { return mov_f32_b32(static_cast<uint32_t>(v) << 16); }

__device__ __forceinline__ uint16_t cvt_rn_f16_f32(float v) {
  if (v != v) return 0x7fff;
  const auto h = static_cast<_Float16>(v);
  uint16_t d;
  std::memcpy(&d, &h, 2);
  return d;
}

__device__ __forceinline__ uint16_t cvt_rn_bf16_f32(float v) {
  if (v != v) return 0x7fff;
  const uint32_t u = mov_b32_f32(v);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

__device__ __forceinline__ uint32_t cvt_rn_f16x2_f32(float lo, float hi) {
  return cvt_rn_f16_f32(lo) | static_cast<uint32_t>(cvt_rn_f16_f32(hi)) << 16;
}

__device__ __forceinline__ uint32_t cvt_rn_bf16x2_f32(float lo, float hi) {
  return cvt_rn_bf16_f32(lo) | static_cast<uint32_t>(cvt_rn_bf16_f32(hi)) << 16;
}

__device__ __forceinline__ uint32_t cvt_rn_relu_f16x2_f32(float lo, float hi) {
  return cvt_rn_f16x2_f32(lo < 0 ? 0.0f : lo, hi < 0 ? 0.0f : hi);
}

__device__ __forceinline__ uint32_t cvt_rn_relu_bf16x2_f32(float lo, float hi) {
  return cvt_rn_bf16x2_f32(lo < 0 ? 0.0f : lo, hi < 0 ? 0.0f : hi);
}

// Rounds ties away from zero by adding half of the last kept bit to the magnitude. As on an H200, NaN and infinity are
// only truncated, so a NaN whose fraction has only low bits becomes infinity.
__device__ __forceinline__ uint32_t cvt_rna_tf32_f32(float v) {
  const uint32_t u = mov_b32_f32(v);
  return (std::isfinite(v) ? u + 0x1000 : u) & 0xffffe000u;
}

// Unlike std::fmax, returns NaN if either operand is NaN, and orders +0 above -0.
__device__ __forceinline__ float max_nan(float a, float b) {
  if (a != a || b != b) return mov_f32_b32(0x7fffffff);
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

__device__ __forceinline__ float fma_rn(float a, float b, float c) { return std::fma(a, b, c); }
__device__ __forceinline__ double fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
__device__ __forceinline__ float sqrt_rn(float v) { return std::sqrt(v); }
__device__ __forceinline__ double sqrt_rn(double v) { return std::sqrt(v); }
__device__ __forceinline__ float rcp_rn(float v) { return 1.0f / v; }
__device__ __forceinline__ double rcp_rn(double v) { return 1.0 / v; }

}  // namespace resnet_fused::cuda::ptx
