#include "runtime/clock.h"

#include <algorithm>
#include <stdexcept>

#include "runtime/clones.h"

namespace cuda_on_cpu {

CUDA_ON_CPU_CLONES void join(Step* __restrict to, const Step* __restrict from, size_t count) {
  for (size_t i = 0; i < count; ++i) to[i] = to[i] > from[i] ? to[i] : from[i];
}

void Past::clear() {
  generic.clear();
  async.clear();
}

void Clocks::reset(size_t threads, size_t blocks) {
  agents_ = threads;
  if (uses_async_) async_.assign(stride_, 0);
  uses_async_ = false;
  if (!touched_ && threads == threads_ && blocks == blocks_) return;
  touched_ = false;
  threads_ = threads;
  blocks_ = blocks;
  stride_ = threads + blocks * kMostExtraAgents;
  generic_.assign(stride_ * stride_, 0);
  async_.assign(stride_, 0);
  for (size_t t = 0; t < threads; ++t) generic_[t * stride_ + t] = 1;
}

Agent Clocks::add_agent() {
  if (agents_ == stride_) throw std::logic_error("cuda_on_cpu: raise kMostExtraAgents");
  return static_cast<Agent>(agents_++);
}

void Clocks::use_async_proxy() {
  if (uses_async_) return;
  uses_async_ = true;
  async_.assign(stride_ * stride_, 0);
}

void Clocks::release(Agent from, Past& to) {
  touched_ = true;
  to.generic.resize(agents_);
  join(to.generic.data(), generic(from), agents_);
  if (uses_async_) {
    to.async.resize(agents_);
    join(to.async.data(), async(from), agents_);
  }
  ++row(generic_, from)[from];
}

void Clocks::acquire(Agent to, const Past& from) {
  touched_ = true;
  join(row(generic_, to), from.generic.data(), from.generic.size());
  if (!from.async.empty()) join(row(async_, to), from.async.data(), from.async.size());
}

void Clocks::fence_proxy(Agent a) {
  use_async_proxy();
  join(row(async_, a), generic(a), agents_);
}

}  // namespace cuda_on_cpu
