// TMA, the tensor memory accelerator: asynchronous copies of boxes.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>

#include "runtime/block.h"
#include "runtime/tensor_map.h"

namespace cuda_on_cpu {

using resnet_fused::cuda::TensorMap;

// TMA stores, by thread. A source counts as being read from the store until the wait for its group; the bytes are
// copied at that wait or earlier.
class BulkStores : public Module {
 public:
  void reset(Block& block) override;
  void thread_exits(Thread& thread) override;

  void store(Thread& thread, const TensorMap& map, uint32_t source, const Coordinates& at, int rank, Place place);
  void commit(Thread& thread);
  void wait(Thread& thread, uint32_t pending);

 private:
  struct Store {
    MapContents map;
    uint32_t source;
    Coordinates at;
    Place place;
    uint32_t group;
    bool done = false;
  };
  struct OfThread {
    int agent = -1;  // the agent that reads the sources
    uint32_t committed = 0;
    std::deque<std::shared_ptr<Store>> stores;
    std::deque<Past> groups;  // committed, not yet waited for
  };

  static void copy(Thread& thread, Store& store);

  Block* block_ = nullptr;
  std::unordered_map<Agent, OfThread> threads_;
};

}  // namespace cuda_on_cpu
