// The blocks that a worker runs at once, those of a cluster or one alone: which of their threads runs next, and what
// orders them. Their shared memories are their own; one set of clocks knows all of their threads.
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

// Something that happens by itself later, such as a copy that lands.
using Delivery = std::function<void(Block&)>;

class Cluster {
 public:
  explicit Cluster(unsigned worker);
  ~Cluster();

  // Runs a cluster from start to end. Returns false if the launch was given up.
  bool run(const Launch& launch, uint64_t number);

  unsigned size() const;
  Block& block(unsigned rank) { return *blocks_[rank]; }
  unsigned live() const { return live_; }  // threads of all blocks that have not exited
  const std::vector<Thread>& threads() const { return threads_; }

  Clocks clocks;
  ClusterBarrier barrier;
  Counters counters;  // of this worker, in this launch

  // As Block has them.
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
  Warp* current_ = nullptr;    // the warp that runs
  Thread* running_ = nullptr;  // null: the worker itself
  void* worker_stack_ = nullptr;
  bool given_up_ = false;
  uint32_t random_ = 1;
  std::vector<Pending> deliveries_;
};

// An address of the whole cluster's shared memory is a block's own address and, above it, 1 + the block's rank. As on a
// GPU, an address of one's own block is one of the cluster's too.
constexpr int kRankShift = 24;

struct ClusterAddress {
  Block* block;  // null: there is none, which has been reported
  uint32_t address;
};
ClusterAddress cluster_address(Thread& thread, uint32_t address, Place place);

}  // namespace cuda_on_cpu
