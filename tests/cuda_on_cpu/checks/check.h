// Deliberately wrong kernels; tests/test_cuda_on_cpu.py checks that the emulator reports them.
//
// A kernel is wrong if c.bug. `// expect: <hazards>` precedes each statement at which a hazard may be reported;
// `expect anywhere` is for hazards without a statement. The schedule may decide which of them are reported. Without the
// bug nothing may be reported.
#pragma once
#include <cstdint>

#include "cuda/device/ptx/cp_async.cuh"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/mma.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/runtime/launch.h"

namespace cuda_on_cpu::checks {

namespace ptx = resnet_fused::cuda::ptx;

constexpr unsigned kBlocks = 2, kThreads = 64, kSharedBytes = 2048;

// Each thread has one word of `in`, `out` and `scratch`. `out` is written exactly once.
struct Check {
  const uint32_t* in;
  uint32_t* out;
  uint32_t* scratch;
  bool bug;
};

__forceinline__ uint32_t thread_of_grid() { return blockIdx.x * kThreads + threadIdx.x; }

// Writes the output of a kernel that tests something else.
__forceinline__ void write_output(const Check& c) { c.out[thread_of_grid()] = threadIdx.x; }

struct Registered {
  using Launch = void (*)(const Check&);
  Registered(const char* file, const char* name, Launch launch);
};

}  // namespace cuda_on_cpu::checks

// Registers the kernel `name` with the default launch; Python calls it <file>.<name>.
#define CHECK(name) CHECK_LAUNCHED(name, LAUNCH(name, kBlocks, kThreads, kSharedBytes, 0, c))
// The same with its own launch statements, which can use c.
#define CHECK_LAUNCHED(name, ...) \
  const Registered registered_##name(__FILE__, #name, [](const Check& c) { __VA_ARGS__; })
