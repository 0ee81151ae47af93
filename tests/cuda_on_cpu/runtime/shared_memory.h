// A block's shared memory, with the last writer and readers of every 2 bytes.
//
// A cell describes 16 bytes, the size of a cp.async copy or of a row of ldmatrix. A smaller access splits its cell into
// eight parts of 2 bytes, until the next write of all 16.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/clock.h"
#include "runtime/place.h"

namespace cuda_on_cpu {

// First shared memory address. As on a GPU, the system reserves the first KiB, so 0 is invalid.
constexpr uint32_t kSharedBase = 1024;
constexpr size_t kMostSharedBytes = 227 << 10;  // most dynamic shared memory of a launch on sm_90

enum class Proxy : uint8_t { kGeneric, kAsync };

// The agent that makes an access, its step, and the clock rows that say what the access is ordered after.
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

  // Starts a block of `threads` threads with `bytes` of memory, poisoned and never written.
  void reset(size_t bytes, Clocks& clocks, unsigned threads);

  size_t bytes() const { return bytes_; }
  unsigned char* begin() { return begin_; }
  // The memory at an address that check() accepted.
  unsigned char* at(uint32_t address) { return begin_ + (address - kSharedBase); }
  uint32_t address_of(const void* pointer) const {
    return static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - begin_) + kSharedBase;
  }
  // Whether a plain C++ pointer points to shared memory, or out of bounds by less than the margin around it.
  bool owns(const void* pointer) const {
    return static_cast<size_t>(static_cast<const unsigned char*>(pointer) - begin_ + kMargin) < kReserved;
  }

  // Reports an access that is out of bounds or not a multiple of `alignment`; false if it must not be made.
  bool check(const char* what, uint32_t address, size_t bytes, size_t alignment, Place place) const;

  // The functions below record an access in the cells and report its first hazard. Except for begin_copy() they do not
  // touch the memory itself. check() must have accepted the address.
  void read(uint32_t address, size_t bytes, const Actor& actor, Place place, Proxy proxy = Proxy::kGeneric);
  void write(uint32_t address, size_t bytes, const Actor& actor, Place place, Proxy proxy = Proxy::kGeneric);

  // An asynchronous write. begin_copy() poisons the bytes, and no access is allowed until land() makes them valid, as
  // written by actor.agent at actor.step. Part of a copy may land alone.
  void begin_copy(uint32_t address, size_t bytes, const Actor& actor, Place place);
  void land(uint32_t address, size_t bytes, const Actor& actor, Proxy proxy = Proxy::kGeneric);

  // reserve() makes bytes an object, such as an mbarrier, that only its own instructions may touch. They count as
  // written by the actor; `what` names the object in reports. release() makes them ordinary, never written bytes again.
  void reserve(uint32_t address, size_t bytes, const Actor& actor, Place place, const char* what);
  void release(uint32_t address, size_t bytes, const Actor& actor, Place place);

  // Whether the last write of the byte at `address` happens before the actor's next access.
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
    bool split;           // the state is in parts_, not here
    uint8_t reserved_as;  // index in names_
    uint16_t crowd;       // 1 + index in crowds_ if there are more than kReaders readers, else 0
    Place read_place[kReaders];
    Step read_step[kReaders];  // 0: none
    Agent reader[kReaders];
  };

  // The readers of a cell with more than kReaders: the latest step of each agent.
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
  Cell* parts_;  // kParts for each cell, valid while it is split
  std::vector<Crowd> crowds_;
  std::vector<uint16_t> free_crowds_;
  std::vector<const char*> names_;
};

}  // namespace cuda_on_cpu
