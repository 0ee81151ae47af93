#include "runtime/block.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "runtime/report.h"

namespace cuda_on_cpu {

Thread* threads_of_worker[kMostWorkers];

Block::Block(unsigned worker) : worker_(worker) {}

size_t Block::next_module_slot() {
  static std::atomic<size_t> slots{0};
  return slots++;
}

void Block::attach(size_t slot, std::unique_ptr<Module> module) {
  if (slot >= modules_.size()) modules_.resize(slot + 1);
  modules_[slot] = std::move(module);
  modules_[slot]->reset(*this);
}

void Block::prepare(const Launch& launch, uint64_t number) {
  launch_ = &launch;
  number_ = number;
  index_ = {static_cast<unsigned>(number % launch.grid.x),
            static_cast<unsigned>(number / launch.grid.x % launch.grid.y),
            static_cast<unsigned>(number / launch.grid.x / launch.grid.y)};
  const dim3 size = launch.block;
  live_ = size.x * size.y * size.z;
  threads_.resize(live_);
  threads_of_worker[worker_] = threads_.data();
  warps_.resize((live_ + 31) / 32);
  for (size_t i = 0; i < warps_.size(); ++i) {
    Warp& w = warps_[i];
    w.block = this;
    w.threads = &threads_[i * 32];
    w.number = static_cast<uint32_t>(i);
    w.live = w.ready = 0;
    w.meetings.clear();
  }
  for (unsigned i = 0; i < live_; ++i) {
    Thread& t = threads_[i];
    t.stack_pointer = stacks.start(worker_, i, &thread_main);
    t.block = this;
    t.warp = &warps_[i / 32];
    t.id = static_cast<Agent>(i);
    t.lane = i % 32;
    t.index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    t.exited = false;
    t.waited_for_grids = !launch.dependent;
    t.watched.clear();
    t.warp->live |= 1u << t.lane;
    ready(t);
  }
  clocks.reset(live_);
  shared.reset(launch.shared_bytes, clocks);
  current_ = &warps_[0];
  given_up_ = false;
  random_ = (launch.seed * 2654435761u ^ static_cast<uint32_t>(number) * 40503u) | 1;
  deliveries_.clear();
  for (auto& m : modules_)
    if (m) m->reset(*this);
}

bool Block::run(const Launch& launch, uint64_t number) {
  prepare(launch, number);
  running_ = nullptr;
  switch_to(next());
  if (!given_up_ && live_) {
    report_deadlock();
    given_up_ = launch.given_up = true;
  }
  if (!given_up_) {
    for (auto& m : modules_)
      if (m) m->block_ends(*this);
    const auto waited = [](const Thread& t) { return t.waited_for_grids; };
    if (std::none_of(threads_.begin(), threads_.end(), waited))
      report("no griddepcontrol.wait", {}, "block ", number, " of ", launch.name,
             " ends, and grids after it may start, while the grid before it still runs");
  }
  return !given_up_;
}

void Block::thread_main() {
  Thread& me = this_thread();
  Block& block = *me.block;
  block.launch_->kernel(block.launch_->closure);
  me.exited = true;
  me.warp->live &= ~(1u << me.lane);
  me.warp->ready &= ~(1u << me.lane);
  --block.live_;
  for (auto& m : block.modules_)
    if (m) m->thread_exits(me);
  block.switch_to(block.next());
  abort();  // nobody switches to a thread that has exited
}

// ---- who runs next
// ---------------------------------------------------------------------------------------------------

uint32_t Block::random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 17;
  random_ ^= random_ << 5;
  return random_ >> 8;
}

void Block::ready(Thread& thread) { thread.warp->ready |= 1u << thread.lane; }

void Block::switch_to(Thread* to) {
  if (to == running_) return;
  void** from = running_ ? &running_->stack_pointer : &worker_stack_;
  running_ = to;
  cuda_on_cpu_switch(from, to ? to->stack_pointer : worker_stack_);
}

void Block::park(Wait wait) {
  Thread& me = *running_;
  me.wait = wait;
  me.warp->ready &= ~(1u << me.lane);
  switch_to(next());
}

void Block::yield() {
  switch (launch_->schedule) {
    case Schedule::kStay:
      return;
    case Schedule::kRotate:
      current_ = next_warp();
      break;
    case Schedule::kRandom:
      if (random() % 4 == 0) deliver();
      current_ = next_warp();
      break;
  }
  switch_to(lane_of(*current_));
}

void Block::give_up() {
  given_up_ = true;
  launch_->given_up = true;
  switch_to(nullptr);
  abort();  // the worker does not come back
}

Warp* Block::next_warp() {
  const size_t count = warps_.size();
  const size_t first = launch_->schedule == Schedule::kRandom ? random() % count : current_->number + 1;
  for (size_t i = 0; i < count; ++i) {
    Warp& w = warps_[(first + i) % count];
    if (w.ready) return &w;
  }
  return nullptr;
}

Thread* Block::lane_of(Warp& warp) {
  uint32_t lanes = warp.ready;
  if (launch_->schedule == Schedule::kRandom) {
    for (uint32_t skip = random() % static_cast<uint32_t>(__builtin_popcount(lanes)); skip; --skip) lanes &= lanes - 1;
  } else if (launch_->schedule == Schedule::kRotate) {
    return &warp.threads[31 - __builtin_clz(lanes)];
  }
  return &warp.threads[__builtin_ctz(lanes)];
}

// Null: nobody can run, now or ever.
Thread* Block::next() {
  for (;;) {
    if (!current_->ready) {
      Warp* w = next_warp();
      if (w) current_ = w;
    }
    if (current_->ready) return lane_of(*current_);
    if (!deliver()) return nullptr;
  }
}

bool Block::deliver() {
  if (deliveries_.empty()) return false;
  const size_t i = launch_->schedule == Schedule::kRandom ? random() % deliveries_.size() : 0;
  const Delivery delivery = std::move(deliveries_[i]);
  deliveries_.erase(deliveries_.begin() + static_cast<ptrdiff_t>(i));
  delivery(*this);
  return true;
}

// ---- what went wrong
// -------------------------------------------------------------------------------------------------

namespace {

bool same(const Wait& a, const Wait& b) { return a.what == b.what && a.number == b.number && a.place == b.place; }

}  // namespace

void Block::report_deadlock() {
  const auto waits = [&](size_t i) { return i < threads_.size() && !threads_[i].exited; };
  for (size_t i = 0; i < threads_.size();) {
    if (!waits(i)) {
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (waits(end) && same(threads_[end].wait, threads_[i].wait)) ++end;
    const Wait& wait = threads_[i].wait;
    std::ostringstream detail;
    detail << "threads " << i << ".." << end - 1 << " of " << threads_.size() << " wait at " << wait.what;
    if (wait.number >= 0) detail << " " << wait.number;
    detail << " for ever; " << threads_.size() - live_ << " have exited";
    findings.add(finding_of("deadlock", {wait.place}, detail.str(), &threads_[i]));
    i = end;
  }
}

}  // namespace cuda_on_cpu
