// mbarriers in shared memory: phases, arrivals and expected bytes.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "runtime/block.h"
#include "runtime/place.h"

namespace cuda_on_cpu {

class Mbarriers : public Module {
 public:
  void reset(Block& block) override;

  void init(Thread& thread, uint32_t address, uint32_t count, Place place);
  void inval(Thread& thread, uint32_t address, Place place);
  void fence_inits(Thread& thread);  // lets TMA use the barriers that this thread has initialised
  void arrive(Thread& thread, uint32_t address, uint32_t expected_bytes, Place place);
  void wait(Thread& thread, uint32_t address, uint32_t parity, Place place);

  // For TMA. bind() checks the barrier when the instruction is issued; false if there is none. Later land() marks bytes
  // of shared memory as written in the barrier's current phase, and complete() counts them.
  bool bind(Thread& thread, uint32_t address, Place place);
  Agent land(uint32_t address, uint32_t destination, size_t bytes);  // returns the agent that wrote
  void complete(uint32_t address, size_t bytes, Place place);

 private:
  struct Barrier {
    uint32_t count = 0, pending = 0;  // arrivals per phase, and how many are still missing
    int64_t bytes = 0;                // bytes expected minus bytes landed
    uint32_t phase = 0;
    Agent initialiser = 0;
    bool alive = false, shown_to_tma = false;
    Past arrived, passed;  // from all arrivals so far; from those of completed phases
    std::vector<Agent> waiting;
    int agent = -1;  // represents the TMA copies that complete here; survives a second init
  };

  Barrier* find(Thread& thread, uint32_t address, Place place);
  void end_phase_if_due(Barrier& barrier, Place place);

  Block* block_ = nullptr;
  std::unordered_map<uint32_t, Barrier> barriers_;
};

}  // namespace cuda_on_cpu
