#include "runtime/cluster.h"

#include <algorithm>
#include <cstdlib>

#include "runtime/block.h"
#include "runtime/instructions_cluster.h"
#include "runtime/report.h"

namespace cuda_on_cpu {

Thread* threads_of_worker[kMostWorkers];

Cluster::Cluster(unsigned worker) : worker_(worker) {}
Cluster::~Cluster() = default;

unsigned Cluster::size() const { return launch_->cluster; }

void Cluster::prepare(const Launch& launch, uint64_t number) {
  launch_ = &launch;
  const unsigned of_block = launch.block.x * launch.block.y * launch.block.z, warps = (of_block + 31) / 32;
  const unsigned blocks = launch.cluster;
  live_ = of_block * blocks;
  threads_.resize(live_);
  threads_of_worker[worker_] = threads_.data();
  warps_.resize(warps * blocks);
  for (unsigned i = 0; i < live_; ++i) {
    threads_[i].stack_pointer = stacks.start(worker_, i, &thread_main);
    threads_[i].agent = static_cast<Agent>(i);
  }
  clocks.reset(live_, blocks);
  while (blocks_.size() < blocks) blocks_.push_back(std::make_unique<Block>(*this));
  deliveries_.clear();
  for (unsigned rank = 0; rank < blocks; ++rank)
    blocks_[rank]->prepare(launch, number * blocks + rank, rank, &threads_[rank * of_block], of_block,
                           &warps_[rank * warps], warps);
  barrier.reset(*this);
  current_ = &warps_[0];
  given_up_ = false;
  random_ = (launch.seed * 2654435761u ^ static_cast<uint32_t>(number * blocks) * 40503u) | 1;
}

bool Cluster::run(const Launch& launch, uint64_t number) {
  prepare(launch, number);
  running_ = nullptr;
  switch_to(next());
  if (!given_up_ && live_) {
    report_deadlock();
    given_up_ = launch.given_up = true;
  }
  if (!given_up_)
    for (unsigned rank = 0; rank < size(); ++rank) blocks_[rank]->end();
  return !given_up_;
}

void Cluster::thread_main() {
  Thread& me = this_thread();
  Cluster& cluster = *me.cluster;
  cluster.launch_->kernel(cluster.launch_->closure);
  me.exited = true;
  me.warp->live &= ~(1u << me.lane);
  me.warp->ready &= ~(1u << me.lane);
  --cluster.live_;
  me.block->thread_exits(me);
  cluster.barrier.thread_exits(me);
  cluster.switch_to(cluster.next());
  abort();  // an exited thread is never resumed
}

// ---- scheduling

uint32_t Cluster::random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 17;
  random_ ^= random_ << 5;
  return random_ >> 8;
}

void Cluster::wake(Thread& thread) { thread.warp->ready |= 1u << thread.lane; }

void Cluster::switch_to(Thread* to) {
  if (to == running_) return;
  void** from = running_ ? &running_->stack_pointer : &worker_stack_;
  running_ = to;
  cuda_on_cpu_switch(from, to ? to->stack_pointer : worker_stack_);
}

void Cluster::park(Wait wait) {
  Thread& me = *running_;
  me.wait = wait;
  me.warp->ready &= ~(1u << me.lane);
  switch_to(next());
}

void Cluster::yield() {
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

void Cluster::give_up() {
  given_up_ = true;
  launch_->given_up = true;
  switch_to(nullptr);
  abort();  // the worker never switches back
}

Warp* Cluster::next_warp() {
  const size_t count = warps_.size(), current = static_cast<size_t>(current_ - warps_.data());
  const size_t first = launch_->schedule == Schedule::kRandom ? random() % count : current + 1;
  for (size_t i = 0; i < count; ++i) {
    Warp& w = warps_[(first + i) % count];
    if (w.ready) return &w;
  }
  return nullptr;
}

Thread* Cluster::lane_of(Warp& warp) {
  uint32_t lanes = warp.ready;
  if (launch_->schedule == Schedule::kRandom) {
    for (uint32_t skip = random() % static_cast<uint32_t>(__builtin_popcount(lanes)); skip; --skip) lanes &= lanes - 1;
  } else if (launch_->schedule == Schedule::kRotate) {
    return &warp.threads[31 - __builtin_clz(lanes)];
  }
  return &warp.threads[__builtin_ctz(lanes)];
}

// The thread to run next; null if no thread can run and nothing is left to deliver.
Thread* Cluster::next() {
  for (;;) {
    if (!current_->ready) {
      Warp* w = next_warp();
      if (w) current_ = w;
    }
    if (current_->ready) return lane_of(*current_);
    if (!deliver()) return nullptr;
  }
}

bool Cluster::deliver() {
  if (deliveries_.empty()) return false;
  const size_t i = launch_->schedule == Schedule::kRandom ? random() % deliveries_.size() : 0;
  const Pending pending = std::move(deliveries_[i]);
  deliveries_.erase(deliveries_.begin() + static_cast<ptrdiff_t>(i));
  pending.delivery(*pending.block);
  return true;
}

// ---- deadlock report

namespace {

bool same(const Wait& a, const Wait& b) { return a.what == b.what && a.number == b.number && a.place == b.place; }

}  // namespace

void Cluster::report_deadlock() {
  for (unsigned rank = 0; rank < size(); ++rank) {
    Block& block = *blocks_[rank];
    const auto waits = [&](unsigned i) { return i < block.size() && !block.thread(static_cast<Agent>(i)).exited; };
    for (unsigned i = 0; i < block.size();) {
      if (!waits(i)) {
        ++i;
        continue;
      }
      const Thread& first = block.thread(static_cast<Agent>(i));
      unsigned end = i + 1;
      while (waits(end) && same(block.thread(static_cast<Agent>(end)).wait, first.wait)) ++end;
      std::ostringstream detail;
      detail << "threads " << i << ".." << end - 1 << " of " << block.size() << " wait at " << first.wait.what;
      if (first.wait.number >= 0) detail << " " << first.wait.number;
      detail << " for ever; " << block.size() - block.live() << " have exited";
      findings.add(finding_of("deadlock", {first.wait.place}, detail.str(), &first));
      i = end;
    }
  }
}

// ---- addresses

ClusterAddress cluster_address(Thread& thread, uint32_t address, Place place) {
  const uint32_t rank = address >> kRankShift, own = address & ((1u << kRankShift) - 1);
  if (!rank) return {thread.block, own};
  if (rank > thread.cluster->size()) {
    report("cluster: no such block", {place}, "rank ", rank - 1, " of ", thread.cluster->size());
    return {nullptr, 0};
  }
  return {&thread.cluster->block(rank - 1), own};
}

uint32_t cluster_rank() { return this_thread().block->rank(); }

uint32_t map_to_rank(uint32_t address, uint32_t rank) { return address | (rank + 1) << kRankShift; }

}  // namespace cuda_on_cpu
