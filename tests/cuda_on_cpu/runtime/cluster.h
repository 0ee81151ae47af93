// The blocks that one worker runs together: a cluster, or a single block. Schedules their threads. Each block has its
// own shared memory; one set of clocks covers all threads.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/clock.h"
#include "runtime/cluster_barrier.h"
#include "runtime/place.h"
#include "runtime/session.h"
#include "runtime/thread.h"
#include "runtime/warp.h"

namespace cuda_on_cpu {

class Block;

// An asynchronous event, such as the landing of a copy.
using Delivery = std::function<void(Block&)>;

class Cluster {
 public:
  explicit Cluster(unsigned worker);
  ~Cluster();

  // Runs cluster `number` of the grid to completion. Returns false if the launch was given up.
  bool run(const Launch& launch, uint64_t number);

  unsigned size() const;
  Block& block(unsigned rank) { return *blocks_[rank]; }
  unsigned live() const { return live_; }  // threads that have not exited, over all blocks
  const std::vector<Thread>& threads() const { return threads_; }

  Clocks clocks;
  ClusterBarrier barrier;
  Counters counters;  // this worker's counters for this launch

  // See Block.
  void park(Wait wait);
  void wake(Thread& thread);
  void yield();
  [[noreturn]] void give_up();
  void deliver_later(Block& block, Delivery delivery) { deliveries_.push_back({&block, std::move(delivery)}); }
  uint32_t random();

 private:
  struct Pending {
    Block* block;
    Delivery delivery;
  };

  static void thread_main();
  void prepare(const Launch& launch, uint64_t number);
  Thread* next();
  Warp* next_warp();
  Thread* lane_of(Warp& warp);
  void switch_to(Thread* to);
  bool deliver();
  void report_deadlock();

  const unsigned worker_;
  const Launch* launch_ = nullptr;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Thread> threads_;  // block after block
  std::vector<Warp> warps_;
  unsigned live_ = 0;
  Warp* current_ = nullptr;    // the running warp
  Thread* running_ = nullptr;  // null: the worker itself
  void* worker_stack_ = nullptr;
  bool given_up_ = false;
  uint32_t random_ = 1;
  std::vector<Pending> deliveries_;
};

// A shared::cluster address holds the block's own shared::cta address in the low bits and 1 + the block's rank above.
// As on a GPU, a shared::cta address is also a valid shared::cluster address: it names the caller's own block.
constexpr int kRankShift = 24;

struct ClusterAddress {
  Block* block;  // null if no such block exists (already reported)
  uint32_t address;
};
ClusterAddress cluster_address(Thread& thread, uint32_t address, Place place);

}  // namespace cuda_on_cpu
