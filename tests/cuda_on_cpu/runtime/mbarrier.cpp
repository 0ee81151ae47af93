#include "runtime/mbarrier.h"

#include "runtime/instructions_cluster.h"
#include "runtime/report.h"
#include "runtime/shared_memory.h"
#include "runtime/thread.h"

namespace cuda_on_cpu {

namespace {

constexpr uint32_t kBytes = 8;
constexpr uint32_t kMostCount = (1 << 20) - 1;  // limit on arrivals and on expected bytes

uint32_t offset(uint32_t address) { return address - kSharedBase; }

}  // namespace

void Mbarriers::reset(Block& block) {
  block_ = &block;
  barriers_.clear();
}

void Mbarriers::init(Thread& thread, uint32_t address, uint32_t count, Place place) {
  if (!block_->shared.check("mbarrier.init", address, kBytes, kBytes, place)) return;
  if (count < 1 || count > kMostCount) report("mbarrier: bad count", {place}, count, " arrivals");
  Barrier& b = barriers_[address];
  if (b.alive)
    report("mbarrier: initialised twice", {place}, "offset ", offset(address), ", without an inval");
  else
    block_->shared.reserve(address, kBytes, actor_of(thread), place, "an mbarrier");
  const int agent = b.agent;
  b = {};
  b.agent = agent;
  b.count = b.pending = count;
  b.initialiser = thread.id;
  b.alive = true;
}

void Mbarriers::inval(Thread& thread, uint32_t address, Place place) {
  Barrier* b = find(thread, address, place);
  if (!b) return;
  if (b->pending != b->count || b->bytes || !b->waiting.empty())
    report("mbarrier: in use when invalidated", {place}, "offset ", offset(address), ", ", b->count - b->pending,
           " arrivals and ", b->bytes, " bytes into phase ", b->phase);
  b->alive = false;
  block_->shared.release(address, kBytes, actor_of(thread), place);
}

void Mbarriers::fence_inits(Thread& thread) {
  for (auto& [address, b] : barriers_)
    if (b.initialiser == thread.id) b.shown_to_tma = true;
}

Mbarriers::Barrier* Mbarriers::find(Thread& thread, uint32_t address, Place place) {
  const auto found = barriers_.find(address);
  if (found == barriers_.end() || !found->second.alive) {
    report("mbarrier: not initialised", {place}, "offset ", offset(address));
    return nullptr;
  }
  if (!block_->shared.ordered(address, actor_of(thread)))
    report("mbarrier: used without a barrier after its init", {place}, "offset ", offset(address));
  return &found->second;
}

void Mbarriers::arrive(Thread& thread, uint32_t address, uint32_t expected_bytes, Place place) {
  Barrier* b = find(thread, address, place);
  if (!b) return;
  if (!b->pending) {
    report("mbarrier: more arrivals than its count", {place}, "offset ", offset(address), ": ", b->count,
           " have arrived in phase ", b->phase, ", and ", b->bytes, " bytes are still expected");
    return;
  }
  b->bytes += expected_bytes;
  if (b->bytes > kMostCount) report("mbarrier: bad count", {place}, b->bytes, " bytes expected");
  --b->pending;
  block_->clocks.release(thread.agent, b->arrived);
  end_phase_if_due(*b, place);
}

void Mbarriers::wait(Thread& thread, uint32_t address, uint32_t parity, Place place) {
  Barrier* b = find(thread, address, place);
  if (!b) return;
  if ((b->phase & 1) != (parity & 1)) {
    block_->clocks.acquire(thread.agent, b->passed);
    return;
  }
  b->waiting.push_back(thread.id);
  block_->park(
      {parity & 1 ? "an mbarrier's odd phase, offset" : "an mbarrier's even phase, offset", offset(address), place});
}

void Mbarriers::end_phase_if_due(Barrier& b, Place place) {
  if (b.pending) return;
  if (b.bytes < 0) {
    report("mbarrier: more bytes than expected", {place}, -b.bytes, " bytes too many in phase ", b.phase);
    b.bytes = 0;
  }
  if (b.bytes) return;
  if (b.agent >= 0) block_->clocks.release(static_cast<Agent>(b.agent), b.arrived);
  b.passed = b.arrived;
  ++b.phase;
  b.pending = b.count;
  for (const Agent id : b.waiting) {
    block_->clocks.acquire(block_->thread(id).agent, b.passed);
    block_->wake(block_->thread(id));
  }
  b.waiting.clear();
}

bool Mbarriers::bind(Thread& thread, uint32_t address, Place place) {
  Barrier* b = find(thread, address, place);
  if (!b) return false;
  if (!b->shown_to_tma)
    report("mbarrier: no fence.mbarrier_init", {place}, "TMA uses offset ", offset(address), ", initialised by thread ",
           b->initialiser, " which has not fenced it");
  if (b->agent < 0) {
    b->agent = block_->clocks.add_agent();
    Past before;
    block_->clocks.release(static_cast<Agent>(b->agent), before);  // steps start at 1
  }
  return true;
}

Agent Mbarriers::land(uint32_t address, uint32_t destination, size_t bytes) {
  const auto agent = static_cast<Agent>(barriers_[address].agent);
  const Clocks& clocks = block_->clocks;
  const Actor actor{agent, clocks.now(agent), clocks.generic(agent), clocks.async(agent)};
  block_->shared.land(destination, bytes, actor, Proxy::kAsync);
  return agent;
}

void Mbarriers::complete(uint32_t address, size_t bytes, Place place) {
  Barrier& b = barriers_[address];
  if (!b.alive) {
    report("mbarrier: in use when invalidated", {place}, "offset ", offset(address), ": TMA has yet to count there");
    return;
  }
  b.bytes -= static_cast<int64_t>(bytes);
  end_phase_if_due(b, place);
}

// ---- instructions

namespace {

Mbarriers& of(Thread& thread) { return thread.block->module<Mbarriers>(); }

}  // namespace

void mbarrier_init(uint32_t address, uint32_t count) {
  Thread& me = this_thread();
  of(me).init(me, address, count, CUDA_ON_CPU_CALLER);
}

void mbarrier_inval(uint32_t address) {
  Thread& me = this_thread();
  of(me).inval(me, address, CUDA_ON_CPU_CALLER);
}

void fence_mbarrier_init() {
  Thread& me = this_thread();
  of(me).fence_inits(me);
}

void mbarrier_arrive(uint32_t address, uint32_t expected_bytes) {
  Thread& me = this_thread();
  of(me).arrive(me, address, expected_bytes, CUDA_ON_CPU_CALLER);
  me.block->yield();
}

void mbarrier_arrive_cluster(uint32_t address) {
  const Place place = CUDA_ON_CPU_CALLER;
  Thread& me = this_thread();
  const ClusterAddress at = cluster_address(me, address, place);
  if (!at.block) return;
  if (at.block != me.block) at.block->remote.note(*at.block, me.agent, place);
  if (at.block->live()) at.block->module<Mbarriers>().arrive(me, at.address, 0, place);
  me.block->yield();
}

void mbarrier_wait_parity(uint32_t address, uint32_t parity) {
  Thread& me = this_thread();
  of(me).wait(me, address, parity, CUDA_ON_CPU_CALLER);
  me.block->yield();
}

void fence_proxy_async() {
  Thread& me = this_thread();
  me.block->clocks.fence_proxy(me.agent);
  of(me).fence_inits(me);
}

}  // namespace cuda_on_cpu
