// Stacks that a CUDA thread runs on, and the switch from one to another.
#pragma once
#include <cstddef>
#include <cstdint>

// Saves the callee-saved registers on the running stack and its pointer in *from, and goes on where `to` was saved.
extern "C" __attribute__((visibility("hidden"))) void cuda_on_cpu_switch(void** from, void* to);

namespace cuda_on_cpu {

// A power of two to which stacks are aligned, so that an address tells whose stack it is on.
constexpr size_t kStackBytes = 256 << 10;
constexpr unsigned kMostThreads = 1024;    // of a block
constexpr unsigned kWorkerThreads = 2048;  // of the blocks of a cluster
constexpr unsigned kMostWorkers = 16;      // clusters that run at once, each on an OS thread of its own

// All stacks, in one piece of address space: `kWorkerThreads` slots for each worker.
class Stacks {
 public:
  // Makes a worker's first `threads` stacks usable. No page between them is closed: a process may have 65530 mappings,
  // and a test loads many modules. That frames are far smaller is left to the compiler (see build.py).
  void open(unsigned worker, unsigned threads);

  // What cuda_on_cpu_switch goes to, to start `entry` on a stack. entry must not return.
  void* start(unsigned worker, unsigned thread, void (*entry)()) const;

  // The slot of an address, or a number past every slot.
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
