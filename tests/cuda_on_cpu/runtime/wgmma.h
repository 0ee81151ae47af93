// wgmma: warpgroup matrix instructions. The multiplication happens at the wait, the latest moment that hardware may
// choose. Until then the accumulators are poisoned and the operands count as being read.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

#include "runtime/block.h"
#include "runtime/instructions_sm90.h"
#include "runtime/place.h"

namespace cuda_on_cpu {

class Wgmmas : public Module {
 public:
  void reset(Block& block) override;
  void thread_exits(Thread& thread) override;
  void block_ends(Block& block) override;

  // One instruction of a warp each; warp.arguments has the lanes' arguments.
  void fence(Warp& warp);
  void issue(Warp& warp, Place place);
  void commit(Warp& warp);
  void wait(Warp& warp, uint32_t pending, Place place);

 private:
  struct Operation {
    WgmmaOperands operands;  // lane 0's
    uint32_t group;
    Place place;
    float* d[32];
    const uint32_t* a_words[32];
    uint32_t a_values[32][4];  // a's registers at issue
  };
  // Accumulators that the tensor core holds.
  struct Held {
    float* d[32];
    int n;
    std::vector<float> values;
  };
  struct OfWarp {
    bool fenced = false;
    int agent = -1;  // the agent that reads operands in shared memory
    uint32_t committed = 0;
    std::deque<Operation> operations;
    std::deque<Past> groups;  // committed, not yet waited for
    std::vector<Held> held;
    size_t issued = 0;
  };
  struct Issue {
    Place place;
    WgmmaOperands operands;
  };

  OfWarp& of(const Warp& warp) { return warps_[warp.number]; }
  void compare_with_warpgroup(Warp& warp, const WgmmaOperands& operands, Place place);
  void hold(Warp& warp, const Operation& operation, Place place);
  void give_back(Warp& warp, Held& held, Place place);
  void note_operand_reads(Warp& warp, const Operation& operation);
  void multiply(const Warp& warp, const Operation& operation);

  Block* block_ = nullptr;
  std::vector<OfWarp> warps_;
  std::vector<std::vector<Issue>> issues_;  // by warpgroup, in issue order
};

}  // namespace cuda_on_cpu
