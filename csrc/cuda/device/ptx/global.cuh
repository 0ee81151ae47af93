// Global memory, one function per instruction. Addresses are multiples of the access size. All are volatile, even loads
// of read-only memory: the compiler keeps volatile assembly in order, so no load moves ahead of griddepcontrol_wait.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda::ptx {

// 16 bytes that are read once, so not allocated in L1.
__device__ __forceinline__ void ld_global_v4(uint32_t (&d)[4], const void* address) {
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "l"(address)
               : "memory");
}

// The same for memory that is read-only while the kernel runs.
__device__ __forceinline__ void ld_global_nc_v4(uint32_t (&d)[4], const void* address) {
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "l"(address));
}

// The same for data that other threads of the SM read too, so allocated in L1.
__device__ __forceinline__ void ld_global_nc_cached_v4(uint32_t (&d)[4], const void* address) {
  asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "l"(address));
}

__device__ __forceinline__ void st_global_v4(void* address, const uint32_t (&s)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(s[0]), "r"(s[1]), "r"(s[2]), "r"(s[3])
               : "memory");
}

__device__ __forceinline__ uint16_t ld_global_u16(const void* address) {
  uint16_t v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(address) : "memory");
  return v;
}

__device__ __forceinline__ float ld_global_f32(const void* address) {
  float v;
  asm volatile("ld.global.f32 %0, [%1];" : "=f"(v) : "l"(address) : "memory");
  return v;
}

__device__ __forceinline__ double ld_global_f64(const void* address) {
  double v;
  asm volatile("ld.global.f64 %0, [%1];" : "=d"(v) : "l"(address) : "memory");
  return v;
}

__device__ __forceinline__ uint16_t ld_global_nc_u8(const void* address) {
  uint16_t v;
  asm volatile("ld.global.nc.u8 %0, [%1];" : "=h"(v) : "l"(address));
  return v;
}

__device__ __forceinline__ uint32_t ld_global_nc_u32(const void* address) {
  uint32_t v;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
}

__device__ __forceinline__ void ld_global_nc_v2(uint32_t (&d)[2], const void* address) {
  asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(d[0]), "=r"(d[1]) : "l"(address));
}

__device__ __forceinline__ uint16_t ld_global_nc_u16(const void* address) {
  uint16_t v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v) : "l"(address));
  return v;
}

__device__ __forceinline__ float ld_global_nc_f32(const void* address) {
  float v;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(v) : "l"(address));
  return v;
}

__device__ __forceinline__ double ld_global_nc_f64(const void* address) {
  double v;
  asm volatile("ld.global.nc.f64 %0, [%1];" : "=d"(v) : "l"(address));
  return v;
}

__device__ __forceinline__ void st_global_u8(void* address, uint16_t v) {
  asm volatile("st.global.u8 [%0], %1;" ::"l"(address), "h"(v) : "memory");
}

__device__ __forceinline__ void st_global_u32(void* address, uint32_t v) {
  asm volatile("st.global.u32 [%0], %1;" ::"l"(address), "r"(v) : "memory");
}

__device__ __forceinline__ void st_global_v2(void* address, const uint32_t (&s)[2]) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(address), "r"(s[0]), "r"(s[1]) : "memory");
}

__device__ __forceinline__ void st_global_u16(void* address, uint16_t v) {
  asm volatile("st.global.u16 [%0], %1;" ::"l"(address), "h"(v) : "memory");
}

__device__ __forceinline__ void st_global_f32(void* address, float v) {
  asm volatile("st.global.f32 [%0], %1;" ::"l"(address), "f"(v) : "memory");
}

__device__ __forceinline__ void st_global_f64(void* address, double v) {
  asm volatile("st.global.f64 [%0], %1;" ::"l"(address), "d"(v) : "memory");
}

}  // namespace resnet_fused::cuda::ptx
