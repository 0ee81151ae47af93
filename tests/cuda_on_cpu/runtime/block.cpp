#include "runtime/block.h"

#include <algorithm>
#include <atomic>

#include "runtime/report.h"

namespace cuda_on_cpu {

Block::Block(Cluster& cluster) : clocks(cluster.clocks), counters(cluster.counters), cluster_(cluster) {}

size_t Block::next_module_slot() {
  static std::atomic<size_t> slots{0};
  return slots++;
}

void Block::attach(size_t slot, std::unique_ptr<Module> module) {
  if (slot >= modules_.size()) modules_.resize(slot + 1);
  modules_[slot] = std::move(module);
  modules_[slot]->reset(*this);
}

void Block::prepare(const Launch& launch, uint64_t number, unsigned rank, Thread* threads, unsigned count, Warp* warps,
                    unsigned warp_count) {
  launch_ = &launch;
  number_ = number;
  rank_ = rank;
  index_ = {static_cast<unsigned>(number % launch.grid.x),
            static_cast<unsigned>(number / launch.grid.x % launch.grid.y),
            static_cast<unsigned>(number / launch.grid.x / launch.grid.y)};
  const dim3 shape = launch.block;
  threads_ = threads;
  warps_ = warps;
  size_ = live_ = count;
  for (unsigned i = 0; i < warp_count; ++i) {
    Warp& w = warps_[i];
    w.block = this;
    w.threads = &threads_[i * 32];
    w.number = i;
    w.live = w.ready = 0;
    w.meetings.clear();
  }
  for (unsigned i = 0; i < size_; ++i) {
    Thread& t = threads_[i];
    t.block = this;
    t.cluster = &cluster_;
    t.warp = &warps_[i / 32];
    t.id = static_cast<Agent>(i);
    t.lane = i % 32;
    t.index = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
    t.exited = false;
    t.waited_for_grids = !launch.dependent;
    t.watched.clear();
    t.warp->live |= 1u << t.lane;
    wake(t);
  }
  shared.reset(launch.shared_bytes, clocks, size_);
  remote.reset();
  for (auto& m : modules_)
    if (m) m->reset(*this);
}

void Block::thread_exits(Thread& thread) {
  --live_;
  for (auto& m : modules_)
    if (m) m->thread_exits(thread);
  if (!live_) remote.check(*this);
}

void Block::end() {
  for (auto& m : modules_)
    if (m) m->block_ends(*this);
  const auto waited = [](const Thread& t) { return t.waited_for_grids; };
  if (std::none_of(threads_, threads_ + size_, waited))
    report("no griddepcontrol.wait", {}, "block ", number_, " of ", launch_->name,
           " ends, and grids after it may start, while the grid before it still runs");
}

}  // namespace cuda_on_cpu
