// Runs a CUDA C++ kernel thread by thread on the CPU, and checks every access that it makes to global memory.
//
// The kernel's own files are compiled unchanged: this folder's cuda/launch.h and cuda/ptx/*.cuh come first on the
// include path, so that a kernel's `#include "cuda/ptx/..."` finds the emulated instructions. Threads run one after
// another, which is enough for kernels without shared memory and barriers.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))

namespace cuda_on_cpu {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
// The thread that runs now.
inline Index thread_index, block_index;

// Memory that kernels may touch. A kernel's launch must write every byte of a writable buffer, once.
struct Buffer {
  std::string name;
  char* begin;
  size_t bytes;
  bool writable;
  std::vector<uint64_t> writer;  // a byte: 1 + the thread that wrote it in this launch, 0 for none
};

struct Report {
  std::vector<std::string> errors;  // the first few
  size_t error_count = 0;
  size_t bytes_loaded = 0, bytes_stored = 0;
  size_t wide_accesses = 0;  // of 16 bytes
};

// What is being run: set up by begin(), filled by the kernels launched until end().
void begin(std::vector<Buffer> buffers, bool reverse);
Report end();

// reverse: the last thread of the last block runs first. A kernel that depends on the order of threads is found by
// running it both ways.
bool reversed();
void next_thread();

enum class Load { kPlain, kReadOnly };
void load(void* to, const void* address, size_t bytes, Load kind);
void store(void* address, const void* from, size_t bytes);

template <typename... Params, typename... Args>
void launch(void (*kernel)(Params...), unsigned grid, unsigned block, const Args&... args) {
  const uint64_t threads = static_cast<uint64_t>(grid) * block;
  for (uint64_t i = 0; i < threads; ++i) {
    const uint64_t id = reversed() ? threads - 1 - i : i;
    block_index = {static_cast<unsigned>(id / block)};
    thread_index = {static_cast<unsigned>(id % block)};
    next_thread();
    kernel(args...);
  }
}

}  // namespace cuda_on_cpu

#define threadIdx (::cuda_on_cpu::thread_index)
#define blockIdx (::cuda_on_cpu::block_index)
