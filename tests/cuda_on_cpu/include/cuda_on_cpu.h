// CUDA C++ for g++: the keywords and types with which a kernel's source compiles unchanged for the CPU.
//
// This folder comes first on the include path, so a kernel's `#include "cuda/runtime/launch.h"` and `#include
// "cuda/device/ptx/..."` find the emulated headers. Every CUDA thread is a fiber; runtime/ schedules and checks them.
#pragma once
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __forceinline__ inline __attribute__((always_inline))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace cuda_on_cpu {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

// Properties of the running thread. They are constant for its lifetime, so the compiler may merge calls.
__attribute__((const)) Index thread_index();
__attribute__((const)) Index block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();
__attribute__((const)) unsigned char* shared_memory();

// Options of a launch: the kernel's name as spelled, blocks per cluster (neighbours along x), and whether blocks may
// start before the previous launch ends.
struct How {
  const char* kernel;
  unsigned cluster;
  bool dependent;
};

// Runs kernel(closure) for every thread of the grid.
void run_grid(const How& how, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(void*), void* closure);

// Each thread gets copies of the arguments on its own stack. The closures are host memory, so their accesses are exempt
// from checking.
template <typename... Params, typename... Args>
void launch(const How& how, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
            const Args&... args) {
  auto call = [&]() __attribute__((no_sanitize_thread)) { kernel(static_cast<Params>(args)...); };
  run_grid(
      how, grid, block, shared_bytes,
      [](void* closure) __attribute__((no_sanitize_thread)) { (*static_cast<decltype(call)*>(closure))(); }, &call);
}

}  // namespace cuda_on_cpu

#define threadIdx (::cuda_on_cpu::thread_index())
#define blockIdx (::cuda_on_cpu::block_index())
#define blockDim (::cuda_on_cpu::block_size())
#define gridDim (::cuda_on_cpu::grid_size())
