// The block's sixteen barriers: barrier.cta.sync and barrier.cta.arrive.
#include <vector>

#include "runtime/block.h"
#include "runtime/instructions.h"
#include "runtime/report.h"

namespace cuda_on_cpu {

namespace {

constexpr int kBarriers = 16;
constexpr unsigned kAll = 0;  // thread count that means every thread that has not exited

struct Barrier {
  unsigned arrived = 0;
  unsigned expected = kAll;
  Place place = 0;  // of the first arrival
  Past past;
  std::vector<Thread*> waiting;
};

class Barriers : public Module {
 public:
  void reset(Block&) override {
    for (Barrier& b : barriers_) clear(b);
  }

  // bar.sync of the whole block does not wait for exited threads.
  void thread_exits(Thread& thread) override {
    Barrier& b = barriers_[0];
    if (b.arrived && b.arrived == thread.block->live()) complete(*thread.block, b);
  }

  void arrive(Thread& me, int id, unsigned expected, bool wait, Place place) {
    Barrier& b = barriers_[id];
    Block& block = *me.block;
    if (b.arrived == 0) {
      b.expected = expected;
      b.place = place;
    } else if (b.expected != expected) {
      report("barrier with two thread counts", {place, b.place}, "barrier ", id, ": ", b.expected, " and ", expected,
             " threads");
    } else if (expected == kAll && b.place != place) {
      report("barrier of the block reached in two places at once", {place, b.place, true}, "barrier ", id);
    }
    ++b.arrived;
    block.clocks.release(me.agent, b.past);
    if (wait) b.waiting.push_back(&me);
    if (b.arrived == (expected == kAll ? block.live() : expected)) {
      complete(block, b);
      block.yield();
    } else if (wait) {
      block.park({"barrier", id, place});
    }
  }

 private:
  static void clear(Barrier& b) {
    b.arrived = 0;
    b.past.clear();
    b.waiting.clear();
  }

  static void complete(Block& block, Barrier& b) {
    for (Thread* t : b.waiting) {
      block.clocks.acquire(t->agent, b.past);
      block.wake(*t);
    }
    clear(b);
  }

  Barrier barriers_[kBarriers];
};

// Arrives at a numbered barrier, or reports an invalid number or thread count.
void arrive_at(int id, int threads, bool wait, Place place) {
  Thread& me = this_thread();
  if (id < 1 || id >= kBarriers || threads <= 0 || threads % 32 || threads > static_cast<int>(me.block->size())) {
    report("invalid barrier", {place}, "barrier ", id, " of ", threads, " threads, in a block of ", me.block->size());
    return;
  }
  me.block->module<Barriers>().arrive(me, id, static_cast<unsigned>(threads), wait, place);
}

}  // namespace

void barrier_sync_all() {
  Thread& me = this_thread();
  me.block->module<Barriers>().arrive(me, 0, kAll, true, CUDA_ON_CPU_CALLER);
}

void barrier_sync(int id, int threads) { arrive_at(id, threads, true, CUDA_ON_CPU_CALLER); }
void barrier_arrive(int id, int threads) { arrive_at(id, threads, false, CUDA_ON_CPU_CALLER); }

}  // namespace cuda_on_cpu
