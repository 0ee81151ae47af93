// A warp, and the collectives of its lanes.
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/place.h"

namespace cuda_on_cpu {

class Block;
struct Thread;

constexpr uint32_t kAllLanes = ~0u;

struct Warp;

// A warp-level instruction. `act` runs once, on the fiber of the last lane to arrive; warp.arguments has every lane's
// argument.
struct Collective {
  const char* name;
  void (*act)(Warp& warp, uint32_t lanes, Place place);
};

// A collective at which some of `lanes` wait for the others.
struct Meeting {
  const Collective* what;
  uint32_t lanes, arrived;
  Place place;
};

struct Warp {
  Block* block = nullptr;
  Thread* threads = nullptr;  // by lane
  uint32_t number = 0;
  uint32_t live = 0;   // lanes that have not exited
  uint32_t ready = 0;  // lanes that can run now
  std::vector<Meeting> meetings;
  void* arguments[32] = {};

  template <typename T>
  T& argument(uint32_t lane) {
    return *static_cast<T*>(arguments[lane]);
  }
};

// Calls f(lane) for each set bit of `lanes`.
template <typename F>
inline void each_lane(uint32_t lanes, F f) {
  for (; lanes; lanes &= lanes - 1) f(static_cast<uint32_t>(__builtin_ctz(lanes)));
}

// Each of `lanes` calls this. It waits for the others and returns once `what` has acted for all. It orders no memory
// accesses by itself. If lanes meet at different instructions or with different masks, it reports that and gives up the
// launch.
void meet(const Collective& what, uint32_t lanes, void* argument, Place place);

// Orders the lanes' accesses like __syncwarp: every lane acquires the past of all lanes.
void order_lanes(Warp& warp, uint32_t lanes);

}  // namespace cuda_on_cpu
