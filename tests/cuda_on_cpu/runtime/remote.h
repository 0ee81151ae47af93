// Accesses to a block's shared memory by other blocks of the cluster. They must happen before the block ends.
#pragma once
#include <cstdint>
#include <vector>

#include "runtime/clock.h"
#include "runtime/place.h"

namespace cuda_on_cpu {

class Block;

class RemoteAccesses {
 public:
  void reset() { accesses_.clear(); }
  // Records an access by an agent at its current step.
  void note(Block& block, Agent agent, Place place);
  // Called when the block's last thread exits: some thread of the block must be ordered after each recorded access.
  void check(Block& block);

 private:
  struct Access {
    Agent agent;
    Step step;
    Place place;
  };
  std::vector<Access> accesses_;
};

}  // namespace cuda_on_cpu
