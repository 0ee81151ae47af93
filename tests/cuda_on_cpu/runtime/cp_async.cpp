// cp.async. A copy lands at its wait, the latest moment that the instruction allows.
#include <cstring>
#include <vector>

#include "runtime/block.h"
#include "runtime/global_memory.h"
#include "runtime/instructions.h"
#include "runtime/report.h"

namespace cuda_on_cpu {

namespace {

struct Copy {
  uint32_t destination, bytes;
  const void* source;  // null: fill with zeros
  uint32_t group;
  Place place;
};

struct Queue {
  std::vector<Copy> copies;  // oldest first
  uint32_t group = 0;        // group of the next copy; earlier groups are committed
};

class CopyQueues : public Module {
 public:
  void reset(Block& block) override {
    queues_.resize(block.size());
    for (Queue& q : queues_) {
      q.copies.clear();
      q.group = 0;
    }
  }

  void thread_exits(Thread& thread) override {
    const Queue& q = queues_[thread.id];
    if (!q.copies.empty())
      report("cp.async in flight when its thread exits", {q.copies[0].place}, q.copies.size(),
             " copies that nobody waited for");
  }

  Queue& of(const Thread& thread) { return queues_[thread.id]; }

 private:
  std::vector<Queue> queues_;
};

Queue& my_queue(Thread& me) { return me.block->module<CopyQueues>().of(me); }

void land(const Copy& copy, SharedMemory& shared, const Actor& actor) {
  if (copy.source)
    std::memcpy(shared.at(copy.destination), copy.source, copy.bytes);
  else
    std::memset(shared.at(copy.destination), 0, copy.bytes);
  shared.land(copy.destination, copy.bytes, actor);
}

}  // namespace

void cp_async(uint32_t destination, const void* source, size_t bytes, bool valid) {
  const Place place = CUDA_ON_CPU_CALLER;
  Thread& me = this_thread();
  Block& block = *me.block;
  if (!block.shared.check("cp.async", destination, bytes, bytes, place)) return;
  const bool readable = valid && global_memory.load(me, source, bytes, bytes, Load::kPlain, place);
  if (readable) block.counters.bytes_copied += bytes;
  block.shared.begin_copy(destination, bytes, actor_of(me), place);
  Queue& q = my_queue(me);
  q.copies.push_back({destination, static_cast<uint32_t>(bytes), readable ? source : nullptr, q.group, place});
}

void cp_async_commit() { ++my_queue(this_thread()).group; }

void cp_async_wait(uint32_t pending) {
  Thread& me = this_thread();
  Queue& q = my_queue(me);
  const Actor actor = actor_of(me);
  size_t landed = 0;
  while (landed < q.copies.size() && q.copies[landed].group + pending < q.group)
    land(q.copies[landed++], me.block->shared, actor);
  q.copies.erase(q.copies.begin(), q.copies.begin() + static_cast<ptrdiff_t>(landed));
}

}  // namespace cuda_on_cpu
