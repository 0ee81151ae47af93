// Vector clocks: which of the things that other agents did come before what an agent does now.
//
// An agent is a thread of the cluster, or something else that writes or reads shared memory on its own, such as a TMA
// copy. Its own time advances by a step whenever it releases, that is lets others know of its past. Since a hazard is
// a missing order, and not a bad moment, it is found whatever the order in which fibers ran.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace cuda_on_cpu {

using Step = uint32_t;
using Agent = uint16_t;

constexpr Agent kMostExtraAgents = 64;  // of a block, beyond its threads

// to[i] = max(to[i], from[i])
void join(Step* to, const Step* from, size_t count);

// A past, as something that is not an agent keeps it: a barrier, until all have arrived.
struct Past {
  std::vector<Step> generic, async;  // empty until the first release to it; async as in Clocks
  void clear();
};

// Row a: the latest step of every agent which agent a is ordered after.
//
// There are two tables. `generic` is the order of ordinary accesses. `async` is what accesses by the async proxy (TMA,
// wgmma) on behalf of an agent are ordered after: of what threads stored, only that which went through a
// fence.proxy.async. It stays zero, and costs nothing, until the block's first use_async_proxy().
class Clocks {
 public:
  void reset(size_t threads, size_t blocks);
  Agent add_agent();  // its row is zero: what acts on its behalf says with whose past

  size_t agents() const { return agents_; }
  size_t threads() const { return threads_; }
  bool uses_async_proxy() const { return uses_async_; }
  void use_async_proxy();

  const Step* generic(Agent a) const { return &generic_[a * stride_]; }
  const Step* async(Agent a) const { return &async_[uses_async_ ? a * stride_ : 0]; }
  Step now(Agent a) const { return generic(a)[a]; }

  void release(Agent from, Past& to);        // from's past becomes part of `to`; then from is a step further
  void acquire(Agent to, const Past& from);  // what is in `from` comes before what `to` does next
  void fence_proxy(Agent a);                 // fence.proxy.async: the async proxy sees all of a's past

 private:
  Step* row(std::vector<Step>& table, Agent a) { return &table[a * stride_]; }

  size_t agents_ = 0, threads_ = 0, stride_ = 0, blocks_ = 0;
  bool uses_async_ = false;
  bool touched_ = false;               // since the reset, so that the next one has something to do
  std::vector<Step> generic_, async_;  // async_ is one row of zeros until it is used
};

}  // namespace cuda_on_cpu
