// One CUDA thread of a block that runs.
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

// What a thread waits for, as a deadlock's report says it: "<what> <number>".
struct Wait {
  const char* what = nullptr;
  int64_t number = -1;  // shown unless negative
  Place place = 0;
};

// Registers (in truth the fiber's stack) that an asynchronous instruction owns: the thread may not touch them.
struct Watched {
  const char* begin;
  size_t bytes;
  const char* hazard;  // of a report, if the thread does
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
  bool waited_for_grids = false;  // or need not: griddepcontrol.wait
  Wait wait;
  std::vector<Watched> watched;
};

// The threads of each worker, by the slots of their stacks.
extern Thread* threads_of_worker[kMostWorkers];

// The running thread. Only on a fiber, that is in what kernels call.
inline Thread& this_thread() {
  const size_t slot = stacks.slot(__builtin_frame_address(0));
  return threads_of_worker[slot / kWorkerThreads][slot % kWorkerThreads];
}

// Whether this is a fiber, and not the host's code that launches kernels.
inline bool on_fiber() { return stacks.slot(__builtin_frame_address(0)) < Stacks::kSlots; }

}  // namespace cuda_on_cpu
