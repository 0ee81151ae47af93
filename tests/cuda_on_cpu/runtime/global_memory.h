// Global memory as buffers, with the last writer and readers of each writable byte.
//
// Within a launch nothing orders the threads of different blocks; within a block the clocks do. A launch comes after
// all of the one before. Any worker may call anything here.
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

  // Note an access by the running thread and report what is wrong with it. False: it must not be made.
  bool load(Thread& thread, const void* address, size_t bytes, size_t alignment, Load kind, Place place);
  bool store(Thread& thread, void* address, size_t bytes, size_t alignment, Place place);

  // Whether some buffer has the byte.
  bool owns(const void* address) const;

 private:
  // An access to a cell: launch, block, thread and its step in one word, so that workers can swap it. 0: none.
  using Access = std::atomic<uint64_t>;
  static constexpr int kReaders = 2;  // remembered a cell; of more, the earliest is forgotten

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
