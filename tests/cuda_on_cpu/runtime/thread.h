// One CUDA thread of a running block.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cuda_on_cpu.h"
#include "runtime/clock.h"
#include "runtime/fiber.h"
#include "runtime/place.h"

namespace cuda_on_cpu {

class Block;
class Cluster;
struct Warp;

// What a thread waits for. A deadlock report prints "<what> <number>".
struct Wait {
  const char* what = nullptr;
  int64_t number = -1;  // printed unless negative
  Place place = 0;
};

// Registers (memory on the fiber's stack) that an asynchronous instruction owns: the thread may not touch them.
struct Watched {
  const char* begin;
  size_t bytes;
  const char* hazard;  // reported if the thread does
};

struct Thread {
  void* stack_pointer = nullptr;
  Block* block = nullptr;
  Cluster* cluster = nullptr;
  Warp* warp = nullptr;
  Agent id = 0;     // within the block
  Agent agent = 0;  // within the cluster
  uint32_t lane = 0;
  Index index;
  bool exited = false;
  bool waited_for_grids = false;  // has executed griddepcontrol.wait, or need not
  Wait wait;
  std::vector<Watched> watched;
};

// Each worker's threads, by stack slot.
extern Thread* threads_of_worker[kMostWorkers];

// The running thread. Call it only on a fiber, that is in code called by kernels.
inline Thread& this_thread() {
  const size_t slot = stacks.slot(__builtin_frame_address(0));
  return threads_of_worker[slot / kWorkerThreads][slot % kWorkerThreads];
}

// Whether the caller runs on a fiber rather than in host code.
inline bool on_fiber() { return stacks.slot(__builtin_frame_address(0)) < Stacks::kSlots; }

}  // namespace cuda_on_cpu
