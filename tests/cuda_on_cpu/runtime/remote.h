// What other blocks of the cluster do to a block's shared memory: it must come before the block ends.
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
  // By an agent at its present step, or by a thread that runs.
  void note(Block& block, Agent agent, Place place);
  // The block's last thread exits: some thread of it must know of every access by now.
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
