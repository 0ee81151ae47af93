#include "runtime/tma.h"

#include <cstring>
#include <vector>

#include "runtime/global_memory.h"
#include "runtime/instructions_cluster.h"
#include "runtime/mbarrier.h"
#include "runtime/report.h"
#include "runtime/shared_memory.h"
#include "runtime/thread.h"

namespace cuda_on_cpu {

namespace {

using Kind = MapContents::Kind;

// Whether the map suits the instruction and the box lies aligned within shared memory. Reports if not.
bool check_box(const char* what, Thread& thread, const MapContents& map, Kind kind, int rank, uint32_t address,
               Place place) {
  if (map.kind != kind || map.rank != rank) {
    report("TMA: the map is of another kind", {place}, what, " of rank ", rank, ", the map has rank ", int{map.rank},
           map.kind == Kind::kIm2col ? " and is im2col" : " and is tiled");
    return false;
  }
  const uint32_t pattern = map.swizzle ? map.swizzle * 8u : 128u;
  return thread.block->shared.check(what, address, map.bytes(), pattern, place);
}

// Splits the part of a row inside the tensor at 16-byte boundaries and calls f(shared address after the swizzle, global
// address, bytes) for each piece.
template <typename F>
void each_piece(const MapContents& map, uint32_t box, const MapRow& row, F f) {
  const uint32_t begin = row.offset + row.first * static_cast<uint32_t>(map.stride[0]), end = begin + row.bytes;
  for (uint32_t at = begin; at < end;) {
    const uint32_t next = std::min(end, (at / 16 + 1) * 16);
    f(swizzled(box + at, map.swizzle), row.source + (at - begin), next - at);
    at = next;
  }
}

// A load in flight; a multicast shares it between its destination blocks.
struct BoxLoad {
  MapContents map;
  std::vector<MapRow> rows;
  uint32_t destination, barrier;
  Place place;
};

void land(Block& block, const BoxLoad& load, bool remote) {
  const MapContents& map = load.map;
  if (!block.live()) return block.remote.note(block, 0, load.place);
  std::memset(block.shared.at(load.destination), 0, map.bytes());
  for (const MapRow& row : load.rows)
    each_piece(map, load.destination, row,
               [&](uint32_t to, const char* from, uint32_t bytes) { std::memcpy(block.shared.at(to), from, bytes); });
  auto& barriers = block.module<Mbarriers>();
  const Agent agent = barriers.land(load.barrier, load.destination, map.bytes());
  if (remote) block.remote.note(block, agent, load.place);
  barriers.complete(load.barrier, map.bytes(), load.place);
}

// Every block in the mask receives the box at the same address of its own shared memory and completes it on its own
// barrier.
void start_load(uint32_t destination, const TensorMap& tensor_map, uint32_t barrier, const Coordinates& at, Kind kind,
                int rank, uint32_t blocks, Place place) {
  Thread& me = this_thread();
  const MapContents map = MapContents::of(tensor_map);
  me.block->clocks.use_async_proxy();
  if (!check_box("TMA load", me, map, kind, rank, destination, place)) return;
  const auto load = std::make_shared<BoxLoad>(BoxLoad{map, rows_of(map, at), destination, barrier, place});
  for (MapRow& row : load->rows)
    if (row.bytes && !global_memory.load(me, row.source, row.bytes, map.stride[0], Load::kPlain, place)) row.bytes = 0;
  me.block->counters.bytes_copied += map.bytes();
  for (unsigned i = 0; i < me.cluster->size(); ++i) {
    if (!(blocks >> i & 1)) continue;
    Block& to = me.cluster->block(i);
    if (&to != me.block && !to.live()) {
      to.remote.note(to, me.agent, place);
      continue;
    }
    if (!to.module<Mbarriers>().bind(me, barrier, place)) continue;
    to.shared.begin_copy(destination, map.bytes(), actor_of(me), place);
    to.deliver_later([load, remote = &to != me.block](Block& b) { land(b, *load, remote); });
  }
  me.block->yield();
}

uint32_t only(const Thread& thread) { return 1u << thread.block->rank(); }

}  // namespace

// ---- stores

void BulkStores::reset(Block& block) {
  block_ = &block;
  threads_.clear();
}

void BulkStores::store(Thread& thread, const TensorMap& tensor_map, uint32_t source, const Coordinates& at, int rank,
                       Place place) {
  const MapContents map = MapContents::of(tensor_map);
  Clocks& clocks = block_->clocks;
  clocks.use_async_proxy();
  if (!check_box("TMA store", thread, map, Kind::kTiled, rank, source, place)) return;
  OfThread& t = threads_[thread.id];
  if (t.agent < 0) {
    t.agent = clocks.add_agent();
    Past before;
    clocks.release(static_cast<Agent>(t.agent), before);  // steps start at 1
  }
  const auto agent = static_cast<Agent>(t.agent);
  const Actor actor{agent, clocks.now(agent), clocks.generic(thread.agent), clocks.async(thread.agent)};
  block_->shared.read(source, map.bytes(), actor, place, Proxy::kAsync);
  t.stores.push_back(std::make_shared<Store>(Store{map, source, at, place, t.committed}));
  const Agent id = thread.id;
  block_->deliver_later([s = t.stores.back(), id](Block& b) { copy(b.thread(id), *s); });
}

void BulkStores::commit(Thread& thread) {
  OfThread& t = threads_[thread.id];
  t.groups.emplace_back();
  if (t.agent >= 0) block_->clocks.release(static_cast<Agent>(t.agent), t.groups.back());
  ++t.committed;
}

void BulkStores::wait(Thread& thread, uint32_t pending) {
  OfThread& t = threads_[thread.id];
  for (; !t.stores.empty() && t.stores.front()->group + pending < t.committed; t.stores.pop_front())
    copy(thread, *t.stores.front());
  for (; t.groups.size() > pending; t.groups.pop_front()) block_->clocks.acquire(thread.agent, t.groups.front());
}

void BulkStores::thread_exits(Thread& thread) {
  const auto found = threads_.find(thread.id);
  if (found == threads_.end()) return;
  for (auto& s : found->second.stores) {
    report("TMA: exit before the wait", {s->place}, "a store may still read the block's shared memory");
    copy(thread, *s);
  }
}

void BulkStores::copy(Thread& thread, Store& s) {
  if (s.done) return;
  s.done = true;
  SharedMemory& shared = thread.block->shared;
  for (const MapRow& row : rows_of(s.map, s.at)) {
    if (!row.bytes || !global_memory.store(thread, row.source, row.bytes, s.map.stride[0], s.place)) continue;
    each_piece(s.map, s.source, row,
               [&](uint32_t from, char* to, uint32_t bytes) { std::memcpy(to, shared.at(from), bytes); });
  }
}

// ---- instructions

void tma_load(uint32_t destination, const TensorMap& map, uint32_t barrier, const Coordinates& at, int rank) {
  start_load(destination, map, barrier, at, Kind::kTiled, rank, only(this_thread()), CUDA_ON_CPU_CALLER);
}

void tma_load_multicast(uint32_t destination, const TensorMap& map, uint32_t barrier, const Coordinates& at, int rank,
                        uint16_t blocks) {
  const Place place = CUDA_ON_CPU_CALLER;
  const unsigned size = this_thread().cluster->size();
  if (!blocks || blocks >> size)
    report("cluster: no such block", {place}, "multicast to the mask ", blocks, " in a cluster of ", size);
  start_load(destination, map, barrier, at, Kind::kTiled, rank, blocks, place);
}

void tma_load_im2col(uint32_t destination, const TensorMap& map, uint32_t barrier, const Coordinates& at) {
  start_load(destination, map, barrier, at, Kind::kIm2col, 4, only(this_thread()), CUDA_ON_CPU_CALLER);
}

void tma_store(const TensorMap& map, uint32_t source, const Coordinates& at, int rank) {
  Thread& me = this_thread();
  me.block->module<BulkStores>().store(me, map, source, at, rank, CUDA_ON_CPU_CALLER);
}

void bulk_commit_group() {
  Thread& me = this_thread();
  me.block->module<BulkStores>().commit(me);
}

void bulk_wait_group(int pending) {
  Thread& me = this_thread();
  me.block->module<BulkStores>().wait(me, static_cast<uint32_t>(pending));
  me.block->yield();
}

void prefetch_tensormap(const TensorMap& map) {
  if (MapContents::of(map).kind == Kind::kNone)
    report("TMA: the map is of another kind", {CUDA_ON_CPU_CALLER}, "prefetch of what no host code has encoded");
}

}  // namespace cuda_on_cpu
