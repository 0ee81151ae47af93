// Vector clocks: which accesses of other agents happen before an agent's next access.
//
// An agent is a thread of the cluster or anything else that accesses shared memory on its own, such as a TMA copy. Its
// step counter advances on every release, which publishes its past to others. A hazard is a missing ordering, so it is
// found in whatever order the fibers ran.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cuda_on_cpu {

using Step = uint32_t;
using Agent = uint16_t;

constexpr Agent kMostExtraAgents = 64;  // per block, beyond its threads

// to[i] = max(to[i], from[i])
void join(Step* to, const Step* from, size_t count);

// A past held by something other than an agent, for example by a barrier until all threads have arrived.
struct Past {
  std::vector<Step> generic, async;  // the tables of Clocks; empty until the first release
  void clear();
};

// Row a holds, for every agent, the latest step that agent a is ordered after.
//
// There are two tables. `generic` orders ordinary accesses. `async` orders accesses that the async proxy (TMA, wgmma)
// makes on behalf of an agent: they are ordered after a thread's stores only once a fence.proxy.async has covered them.
// It stays zero, and costs nothing, until the block's first use_async_proxy().
class Clocks {
 public:
  void reset(size_t threads, size_t blocks);
  Agent add_agent();  // its row is zero: each access made as this agent supplies the past it is ordered after

  size_t agents() const { return agents_; }
  size_t threads() const { return threads_; }
  bool uses_async_proxy() const { return uses_async_; }
  void use_async_proxy();

  const Step* generic(Agent a) const { return &generic_[a * stride_]; }
  const Step* async(Agent a) const { return &async_[uses_async_ ? a * stride_ : 0]; }
  Step now(Agent a) const { return generic(a)[a]; }

  void release(Agent from, Past& to);        // adds the past of `from` to `to`, then advances `from` by a step
  void acquire(Agent to, const Past& from);  // orders everything in `from` before the next access of `to`
  void fence_proxy(Agent a);                 // fence.proxy.async: makes all of a's past visible to the async proxy

 private:
  Step* row(std::vector<Step>& table, Agent a) { return &table[a * stride_]; }

  size_t agents_ = 0, threads_ = 0, stride_ = 0, blocks_ = 0;
  bool uses_async_ = false;
  bool touched_ = false;               // changed since reset(), so the next reset() must clear the tables
  std::vector<Step> generic_, async_;  // async_ is one row of zeros until first used
};

}  // namespace cuda_on_cpu
