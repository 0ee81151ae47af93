// The emulated twin of csrc/cuda/device/ptx/global.cuh; tests/test_cuda_static.py asserts that both declare the same
// functions.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions.h"

namespace resnet_fused::cuda::ptx {

namespace emulated {

template <typename T>
__forceinline__ T load(const void* address, cuda_on_cpu::Load kind) {
  T v;
  cuda_on_cpu::load_global(&v, address, sizeof v, kind);
  return v;
}

}  // namespace emulated

__device__ __forceinline__ void ld_global_v4(uint32_t (&d)[4], const void* address) {
  cuda_on_cpu::load_global(d, address, 16, cuda_on_cpu::Load::kPlain);
}

__device__ __forceinline__ void ld_global_nc_v4(uint32_t (&d)[4], const void* address) {
  cuda_on_cpu::load_global(d, address, 16, cuda_on_cpu::Load::kReadOnly);
}

__device__ __forceinline__ void ld_global_nc_cached_v4(uint32_t (&d)[4], const void* address) {
  cuda_on_cpu::load_global(d, address, 16, cuda_on_cpu::Load::kReadOnly);
}

__device__ __forceinline__ void st_global_v4(void* address, const uint32_t (&s)[4]) {
  cuda_on_cpu::store_global(address, s, 16);
}

__device__ __forceinline__ uint16_t ld_global_u16(const void* address) {
  return emulated::load<uint16_t>(address, cuda_on_cpu::Load::kPlain);
}

__device__ __forceinline__ float ld_global_f32(const void* address) {
  return emulated::load<float>(address, cuda_on_cpu::Load::kPlain);
}

__device__ __forceinline__ double ld_global_f64(const void* address) {
  return emulated::load<double>(address, cuda_on_cpu::Load::kPlain);
}

__device__ __forceinline__ uint16_t ld_global_nc_u8(const void* address) {
  return emulated::load<uint8_t>(address, cuda_on_cpu::Load::kReadOnly);
}

__device__ __forceinline__ uint32_t ld_global_nc_u32(const void* address) {
  return emulated::load<uint32_t>(address, cuda_on_cpu::Load::kReadOnly);
}

__device__ __forceinline__ void ld_global_nc_v2(uint32_t (&d)[2], const void* address) {
  cuda_on_cpu::load_global(d, address, 8, cuda_on_cpu::Load::kReadOnly);
}

__device__ __forceinline__ uint16_t ld_global_nc_u16(const void* address) {
  return emulated::load<uint16_t>(address, cuda_on_cpu::Load::kReadOnly);
}

__device__ __forceinline__ float ld_global_nc_f32(const void* address) {
  return emulated::load<float>(address, cuda_on_cpu::Load::kReadOnly);
}

__device__ __forceinline__ double ld_global_nc_f64(const void* address) {
  return emulated::load<double>(address, cuda_on_cpu::Load::kReadOnly);
}

__device__ __forceinline__ void st_global_u8(void* address, uint16_t v) { cuda_on_cpu::store_global(address, &v, 1); }

__device__ __forceinline__ void st_global_u32(void* address, uint32_t v) { cuda_on_cpu::store_global(address, &v, 4); }

__device__ __forceinline__ void st_global_v2(void* address, const uint32_t (&s)[2]) {
  cuda_on_cpu::store_global(address, s, 8);
}

__device__ __forceinline__ void st_global_u16(void* address, uint16_t v) { cuda_on_cpu::store_global(address, &v, 2); }

__device__ __forceinline__ void st_global_f32(void* address, float v) { cuda_on_cpu::store_global(address, &v, 4); }

__device__ __forceinline__ void st_global_f64(void* address, double v) { cuda_on_cpu::store_global(address, &v, 8); }

}  // namespace resnet_fused::cuda::ptx
