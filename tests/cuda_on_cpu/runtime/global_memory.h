// Global memory as buffers, with the last writer and recent readers of each writable cell.
//
// Within a launch, clocks order the threads of a block; threads of different blocks are unordered. A launch is ordered
// after the previous one. load() and store() may be called by any worker.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/instructions.h"
#include "runtime/place.h"
#include "runtime/session.h"

namespace cuda_on_cpu {

struct Thread;

class GlobalMemory {
 public:
  void reset(std::vector<Buffer> buffers);
  void add(Buffer buffer);
  void report_unwritten();

  // Record an access by the running thread and report its hazards. Return false if the access must not be made.
  bool load(Thread& thread, const void* address, size_t bytes, size_t alignment, Load kind, Place place);
  bool store(Thread& thread, void* address, size_t bytes, size_t alignment, Place place);

  // Whether the byte lies in a buffer.
  bool owns(const void* address) const;

 private:
  // An access to a cell: launch, block, thread and step in one word, so that workers exchange it atomically. 0: none.
  using Access = std::atomic<uint64_t>;
  static constexpr int kReaders = 2;  // readers remembered per cell; when full, a new reader replaces the first

  struct Tracked : Buffer {
    explicit Tracked(Buffer b);
    bool writable() const { return kind != BufferKind::kInput; }
    size_t cells() const { return (bytes + cell - 1) / cell; }
    std::unique_ptr<Access[]> writer;
    std::unique_ptr<Access[]> readers;
    std::unique_ptr<std::atomic<Place>[]> writer_place;
  };

  static void report_unwritten(const Tracked& buffer);
  static void check_grids(const char* what, const Thread& thread, const void* address, Place place);
  Tracked* find(const char* what, const void* address, size_t bytes, size_t alignment, Place place);
  void check_load(Tracked& buffer, size_t cell, Thread& thread, uint64_t me, Load kind, Place place);
  void check_store(Tracked& buffer, size_t cell, Thread& thread, uint64_t me, Place place);

  std::vector<Tracked> buffers_;
};

extern GlobalMemory global_memory;

}  // namespace cuda_on_cpu
