// A warp, and how its lanes do something together.
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/place.h"

namespace cuda_on_cpu {

class Block;
struct Thread;

constexpr uint32_t kAllLanes = ~0u;

struct Warp;

// An instruction that lanes execute as one. `act` runs once, on the fiber of the last lane to arrive, with every
// lane's argument in warp.arguments.
struct Collective {
  const char* name;
  void (*act)(Warp& warp, uint32_t lanes, Place place);
};

// Lanes that have arrived at a collective and wait for the others of `lanes`.
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
  uint32_t ready = 0;  // lanes that could run now
  std::vector<Meeting> meetings;
  void* arguments[32] = {};

  template <typename T>
  T& argument(uint32_t lane) {
    return *static_cast<T*>(arguments[lane]);
  }
};

// For each set bit of `lanes`: f(lane).
template <typename F>
inline void each_lane(uint32_t lanes, F f) {
  for (; lanes; lanes &= lanes - 1) f(static_cast<uint32_t>(__builtin_ctz(lanes)));
}

// Called by each of the `lanes`: waits for the others, and returns when `what` has been done for all. It orders
// nothing by itself. Reports lanes that meet at different instructions, or for different lanes, and gives the launch
// up.
void meet(const Collective& what, uint32_t lanes, void* argument, Place place);

// Every lane's past becomes every lane's, as __syncwarp has it.
void order_lanes(Warp& warp, uint32_t lanes);

}  // namespace cuda_on_cpu
