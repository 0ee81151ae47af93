// A block being run: its threads, its shared memory, and the state of modules (barriers, cp.async, ...).
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/clock.h"
#include "runtime/cluster.h"
#include "runtime/remote.h"
#include "runtime/session.h"
#include "runtime/shared_memory.h"
#include "runtime/thread.h"
#include "runtime/warp.h"

namespace cuda_on_cpu {

// Base class for the per-block state of one group of instructions. Each worker has one object per cluster rank, created
// on the first Block::module<M>(); it is reused for later blocks and reset before each.
class Module {
 public:
  virtual ~Module() = default;
  virtual void reset(Block&) = 0;        // before a block's first thread runs, or at the module's first use in it
  virtual void thread_exits(Thread&) {}  // called on the thread's fiber
  virtual void block_ends(Block&) {}     // called after all threads of the cluster have exited
};

class Block {
 public:
  explicit Block(Cluster& cluster);

  // Called by the cluster.
  void prepare(const Launch& launch, uint64_t number, unsigned rank, Thread* threads, unsigned count, Warp* warps,
               unsigned warp_count);
  void thread_exits(Thread& thread);
  void end();

  const Launch& launch() const { return *launch_; }
  uint64_t number() const { return number_; }  // x + y * grid.x + z * grid.x * grid.y
  unsigned rank() const { return rank_; }      // within the cluster
  const Index& index() const { return index_; }
  unsigned size() const { return size_; }
  unsigned live() const { return live_; }  // threads that have not exited
  Thread& thread(Agent id) { return threads_[id]; }
  Warp* warps() { return warps_; }
  unsigned warp_count() const { return (size_ + 31) / 32; }

  Clocks& clocks;  // shared by the cluster
  SharedMemory shared;
  RemoteAccesses remote;
  Counters& counters;  // this worker's counters for this launch

  // On a fiber: suspends the running thread until wake() is called for it.
  void park(Wait wait) { cluster_.park(wait); }
  void wake(Thread& thread) { cluster_.wake(thread); }
  // On a fiber, after a collective: lets the schedule choose the next lane.
  void yield() { cluster_.yield(); }
  // On a fiber: aborts the launch. Unfinished threads never resume.
  [[noreturn]] void give_up() { cluster_.give_up(); }

  // Runs `delivery` once no thread can run; the random schedule may also run it at any switch.
  void deliver_later(Delivery delivery) { cluster_.deliver_later(*this, std::move(delivery)); }

  template <typename M>
  M& module() {
    static const size_t slot = next_module_slot();
    if (slot >= modules_.size() || !modules_[slot]) attach(slot, std::make_unique<M>());
    return static_cast<M&>(*modules_[slot]);
  }

 private:
  static size_t next_module_slot();
  void attach(size_t slot, std::unique_ptr<Module> module);

  Cluster& cluster_;
  const Launch* launch_ = nullptr;
  uint64_t number_ = 0;
  unsigned rank_ = 0;
  Index index_;
  Thread* threads_ = nullptr;
  Warp* warps_ = nullptr;
  unsigned size_ = 0, live_ = 0;
  std::vector<std::unique_ptr<Module>> modules_;
};

}  // namespace cuda_on_cpu
