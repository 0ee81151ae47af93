// Kernels that are wrong on purpose, so that tests/test_cuda_on_cpu.py sees whether the emulator notices.
//
// A kernel is wrong if c.bug. Before a statement at which it may then be found out stands `// expect: <hazards>`;
// `expect anywhere` is for hazards that are not found at a statement. Which of them are reported can depend on the
// schedule. Without the bug nothing is to be found.
#pragma once
#include <cstdint>

#include "cuda/launch.h"
#include "cuda/ptx/cp_async.cuh"
#include "cuda/ptx/global.cuh"
#include "cuda/ptx/mma.cuh"
#include "cuda/ptx/shared.cuh"
#include "cuda/ptx/sync.cuh"

namespace cuda_on_cpu::checks {

namespace ptx = resnet_fused::cuda::ptx;

constexpr unsigned kBlocks = 2, kThreads = 64, kSharedBytes = 2048;

// One word of `in`, `out` and `scratch` a thread. `out` is written exactly once.
struct Check {
  const uint32_t* in;
  uint32_t* out;
  uint32_t* scratch;
  bool bug;
};

__forceinline__ uint32_t thread_of_grid() { return blockIdx.x * kThreads + threadIdx.x; }

// For a kernel that is not about its output.
__forceinline__ void write_output(const Check& c) { c.out[thread_of_grid()] = threadIdx.x; }

struct Registered {
  using Launch = void (*)(const Check&);
  Registered(const char* file, const char* name, Launch launch);
};

}  // namespace cuda_on_cpu::checks

// The kernel `name`, launched as all are; Python calls it <file>.<name>.
#define CHECK(name) CHECK_LAUNCHED(name, LAUNCH(name, kBlocks, kThreads, kSharedBytes, 0, c))
// ... or by statements of its own, which see c.
#define CHECK_LAUNCHED(name, ...) \
  const Registered registered_##name(__FILE__, #name, [](const Check& c) { __VA_ARGS__; })
