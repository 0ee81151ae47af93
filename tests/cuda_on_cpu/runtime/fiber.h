// Stacks of CUDA threads, and the switch between them.
#pragma once
#include <cstddef>
#include <cstdint>

// Saves the callee-saved registers on the current stack, stores the stack pointer in *from, and resumes the stack `to`.
extern "C" __attribute__((visibility("hidden"))) void cuda_on_cpu_switch(void** from, void* to);

namespace cuda_on_cpu {

// A power of two. Stacks are aligned to it, so an address on a stack identifies its thread.
constexpr size_t kStackBytes = 256 << 10;
constexpr unsigned kMostThreads = 1024;    // per block
constexpr unsigned kWorkerThreads = 2048;  // per cluster
constexpr unsigned kMostWorkers = 16;      // clusters run concurrently, one per OS thread

// All stacks in one range of address space: `kWorkerThreads` slots per worker.
class Stacks {
 public:
  // Makes a worker's first `threads` stacks accessible. There are no guard pages between them: a process may have only
  // 65530 mappings, and a test loads many modules. Instead, the compiler rejects large frames (-Wframe-larger-than in
  // build.py).
  void open(unsigned worker, unsigned threads);

  // Prepares a stack and returns the pointer for cuda_on_cpu_switch that starts `entry` on it. entry must not return.
  void* start(unsigned worker, unsigned thread, void (*entry)()) const;

  // The slot that holds an address; kSlots or more if no slot does.
  size_t slot(const void* address) const {
    const size_t offset = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(begin_);
    return offset / kStackBytes;
  }
  static constexpr size_t kSlots = static_cast<size_t>(kMostWorkers) * kWorkerThreads;

 private:
  char* begin_ = nullptr;
  unsigned opened_[kMostWorkers] = {};
};

extern Stacks stacks;

}  // namespace cuda_on_cpu
