// A block's shared memory, with the last writer and readers of each byte.
//
// A cell describes 16 bytes: what cp.async copies, what a row of ldmatrix is. A smaller access splits its cell into
// eight parts of 2 bytes, until the next write of all 16.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/clock.h"
#include "runtime/place.h"

namespace cuda_on_cpu {

// Addresses, as instructions take them, start here, as on a GPU whose system reserves the first KiB: 0 is invalid.
constexpr uint32_t kSharedBase = 1024;
constexpr size_t kMostSharedBytes = 227 << 10;  // that a launch may ask for on sm_90

enum class Proxy : uint8_t { kGeneric, kAsync };

// On whose behalf an access is made: the agent and step that are noted, and what they are ordered after.
struct Actor {
  Agent agent;
  Step step;
  const Step* generic;
  const Step* async;  // read only for accesses by the async proxy
};
Actor actor_of(struct Thread& thread);

class SharedMemory {
 public:
  SharedMemory();
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;

  // `bytes` of fresh memory, all of it poisoned and never written, of a block of so many threads.
  void reset(size_t bytes, Clocks& clocks, unsigned threads);

  size_t bytes() const { return bytes_; }
  unsigned char* begin() { return begin_; }
  // The memory at an address that check() has passed.
  unsigned char* at(uint32_t address) { return begin_ + (address - kSharedBase); }
  uint32_t address_of(const void* pointer) const {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - begin_) + kSharedBase;
  }
  // Whether a pointer of plain C++ means shared memory, be it in bounds or somewhat beyond.
  bool owns(const void* pointer) const {
    return static_cast<size_t>(static_cast<const unsigned char*>(pointer) - begin_ + kMargin) < kReserved;
  }

  // Reports an access that is out of bounds or not a multiple of `alignment`; false if it must not be made.
  bool check(const char* what, uint32_t address, size_t bytes, size_t alignment, Place place) const;

  // All that follow note an access in the cells and report the first hazard that they see, but do not touch the memory
  // itself, unless they say so. The address must have passed check().
  void read(uint32_t address, size_t bytes, const Actor& actor, Place place, Proxy proxy = Proxy::kGeneric);
  void write(uint32_t address, size_t bytes, const Actor& actor, Place place, Proxy proxy = Proxy::kGeneric);

  // An asynchronous write: from begin_copy() on the bytes are poisoned and must not be touched; land() makes them
  // valid, written at actor.step by actor.agent. A part of a copy can land alone.
  void begin_copy(uint32_t address, size_t bytes, const Actor& actor, Place place);
  void land(uint32_t address, size_t bytes, const Actor& actor, Proxy proxy = Proxy::kGeneric);

  // Bytes that only certain instructions may touch, such as an mbarrier; `what` names it in reports. They count as
  // written by the actor.
  void reserve(uint32_t address, size_t bytes, const Actor& actor, Place place, const char* what);
  void release(uint32_t address, size_t bytes, const Actor& actor, Place place);  // ordinary bytes again, never written

  // Whether the last write of the byte at `address` comes before what `actor` does now.
  bool ordered(uint32_t address, const Actor& actor);

 private:
  static constexpr size_t kMargin = 1 << 20, kReserved = 3 << 20;
  static constexpr uint32_t kCellBytes = 16, kPartBytes = 2, kParts = kCellBytes / kPartBytes;
  static constexpr int kReaders = 4;

  enum class State : uint8_t { kNever, kValid, kInFlight, kReserved };

  struct alignas(64) Cell {
    Step write_step;
    Place write_place;
    Agent writer;
    State state;
    bool async;           // written by the async proxy
    bool split;           // the parts are told apart, and this cell says nothing
    uint8_t reserved_as;  // an index in names_
    uint16_t crowd;       // 1 + index in crowds_, if more read than there is room for below
    Place read_place[kReaders];
    Step read_step[kReaders];  // 0: none
    Agent reader[kReaders];
  };

  // The readers of a cell that has many: the latest step of each agent.
  struct Crowd {
    std::vector<Step> steps;
    Place place;
  };

  template <typename F>
  void each_cell(uint32_t address, size_t bytes, F f);
  void split(uint32_t index);

  // Whether an access is free of hazards; reports the first if not.
  bool may_read(const Cell& cell, uint32_t offset, const Actor& actor, Place place, Proxy proxy) const;
  bool may_write(const Cell& cell, uint32_t offset, const Actor& actor, Place place) const;
  void check_writes(uint32_t address, size_t bytes, const Actor& actor, Place place);

  void note_read(Cell& cell, const Actor& actor, Place place);
  void note_crowd(Cell& cell, const Actor& actor, Place place);
  void note_write(Cell& cell, const Actor& actor, Place place, State state, bool async);
  void note_writes(uint32_t address, size_t bytes, const Actor& actor, Place place, State state, bool async);
  void forget_readers(Cell& cell);
  uint16_t new_crowd();  // 1 + its index

  std::string agent_name(Agent agent) const;

  unsigned char* reserved_;
  unsigned char* begin_;
  size_t bytes_ = 0;
  Clocks* clocks_ = nullptr;
  unsigned threads_ = 0;
  std::vector<Cell> cells_;
  Cell* parts_;  // kParts for each cell, set when it is split
  std::vector<Crowd> crowds_;
  std::vector<uint16_t> free_crowds_;
  std::vector<const char*> names_;
};

}  // namespace cuda_on_cpu
