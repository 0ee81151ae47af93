// The block that a worker runs: its threads as fibers, which of them runs next, its shared memory, and what modules
// (barriers, cp.async, ...) keep for it.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "runtime/clock.h"
#include "runtime/session.h"
#include "runtime/shared_memory.h"
#include "runtime/thread.h"
#include "runtime/warp.h"

namespace cuda_on_cpu {

// Base of what one group of instructions keeps for a block. There is one object a worker, made at the first use of
// Block::module<M>(); it outlives the block and is reset before each.
class Module {
 public:
  virtual ~Module() = default;
  virtual void reset(Block&) = 0;        // before a block's first thread runs, or at the module's first use in it
  virtual void thread_exits(Thread&) {}  // on its fiber
  virtual void block_ends(Block&) {}     // all threads have exited
};

// Something that happens by itself later, such as a copy that lands.
using Delivery = std::function<void(Block&)>;

class Block {
 public:
  explicit Block(unsigned worker);

  // Runs a block from start to end. Returns false if the launch was given up.
  bool run(const Launch& launch, uint64_t number);

  const Launch& launch() const { return *launch_; }
  uint64_t number() const { return number_; }  // x + y * grid.x + z * grid.x * grid.y
  const Index& index() const { return index_; }
  unsigned worker() const { return worker_; }
  unsigned size() const { return static_cast<unsigned>(threads_.size()); }
  unsigned live() const { return live_; }  // threads that have not exited
  Thread& thread(Agent id) { return threads_[id]; }
  std::vector<Warp>& warps() { return warps_; }

  Clocks clocks;
  SharedMemory shared;
  Counters counters;  // of this worker, in this launch

  // On a fiber: stops the running thread until wake() is called with it.
  void park(Wait wait);
  void wake(Thread& thread) { ready(thread); }
  // On a fiber: lets the schedule choose who goes on, after the warp did something together.
  void yield();
  // On a fiber: the launch cannot go on. Threads that have not finished are dropped as they are.
  [[noreturn]] void give_up();

  // Runs `delivery` when no thread can run; the random schedule may also run it at any switch.
  void deliver_later(Delivery delivery) { deliveries_.push_back(std::move(delivery)); }

  template <typename M>
  M& module() {
    static const size_t slot = next_module_slot();
    if (slot >= modules_.size() || !modules_[slot]) attach(slot, std::make_unique<M>());
    return static_cast<M&>(*modules_[slot]);
  }

  uint32_t random();  // the random schedule's own sequence

 private:
  static size_t next_module_slot();
  static void thread_main();
  void attach(size_t slot, std::unique_ptr<Module> module);
  void prepare(const Launch& launch, uint64_t number);
  void ready(Thread& thread);
  Thread* next();
  Warp* next_warp();
  Thread* lane_of(Warp& warp);
  void switch_to(Thread* to);
  bool deliver();
  void report_deadlock();

  const unsigned worker_;
  const Launch* launch_ = nullptr;
  uint64_t number_ = 0;
  Index index_;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  unsigned live_ = 0;
  Warp* current_ = nullptr;    // the warp that runs
  Thread* running_ = nullptr;  // null: the worker itself
  void* worker_stack_ = nullptr;
  bool given_up_ = false;
  uint32_t random_ = 1;
  std::vector<Delivery> deliveries_;
  std::vector<std::unique_ptr<Module>> modules_;
};

}  // namespace cuda_on_cpu
