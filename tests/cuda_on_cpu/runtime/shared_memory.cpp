#include "runtime/shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "runtime/block.h"
#include "runtime/report.h"

namespace cuda_on_cpu {

namespace {

constexpr int kPoison = 0xff;  // a NaN in every floating-point type

void* map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

constexpr size_t round_up(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Actor actor_of(Thread& thread) {
  const Clocks& clocks = thread.block->clocks;
  return {thread.agent, clocks.now(thread.agent), clocks.generic(thread.agent), clocks.async(thread.agent)};
}

SharedMemory::SharedMemory()
    : reserved_(static_cast<unsigned char*>(map(kReserved))),
      begin_(reserved_ + kMargin),
      parts_(static_cast<Cell*>(map(kMostSharedBytes / kPartBytes * sizeof(Cell)))) {}

SharedMemory::~SharedMemory() {
  munmap(reserved_, kReserved);
  munmap(parts_, kMostSharedBytes / kPartBytes * sizeof(Cell));
}

void SharedMemory::reset(size_t bytes, Clocks& clocks, unsigned threads) {
  bytes_ = bytes;
  clocks_ = &clocks;
  threads_ = threads;
  std::memset(begin_, kPoison, bytes);
  cells_.resize(round_up(bytes, kCellBytes) / kCellBytes);
  std::memset(static_cast<void*>(cells_.data()), 0, cells_.size() * sizeof(Cell));
  free_crowds_.clear();
  for (size_t i = 0; i < crowds_.size(); ++i) free_crowds_.push_back(static_cast<uint16_t>(i));
  names_.clear();
}

bool SharedMemory::check(const char* what, uint32_t address, size_t bytes, size_t alignment, Place place) const {
  if (address < kSharedBase || address - kSharedBase + bytes > bytes_) {
    report("shared memory out of bounds", {place}, what, " of ", bytes, " bytes at offset ",
           static_cast<int64_t>(address) - kSharedBase, " of ", bytes_);
    return false;
  }
  if (address % alignment) {
    report("shared memory misaligned", {place}, what, " of ", bytes, " bytes at offset ", address - kSharedBase,
           ", which is no multiple of ", alignment);
    return false;
  }
  if (address % kPartBytes || bytes % kPartBytes) {
    report("single bytes of shared memory", {place}, what, " at offset ", address - kSharedBase,
           ": the emulator tells 2 bytes apart at best");
    return false;
  }
  return true;
}

// Calls f(cell, its offset) for each cell, or part of a split cell, that the bytes touch, until f returns false.
template <typename F>
void SharedMemory::each_cell(uint32_t address, size_t bytes, F f) {
  uint32_t at = address - kSharedBase;
  const uint32_t end = at + static_cast<uint32_t>(bytes);
  while (at < end) {
    const uint32_t index = at / kCellBytes, next = std::min(end, (index + 1) * kCellBytes);
    Cell& cell = cells_[index];
    const bool whole = next - at == kCellBytes;
    if (whole && !cell.split) {
      if (!f(cell, at)) return;
    } else {
      if (!cell.split) split(index);
      for (uint32_t part = at / kPartBytes; part * kPartBytes < next; ++part)
        if (!f(parts_[part], part * kPartBytes)) return;
    }
    at = next;
  }
}

void SharedMemory::split(uint32_t index) {
  Cell& cell = cells_[index];
  Cell* parts = parts_ + index * kParts;
  for (uint32_t i = 0; i < kParts; ++i) {
    parts[i] = cell;
    if (cell.crowd && i) {  // each part gets its own copy of the crowd
      const Crowd copy = crowds_[cell.crowd - 1];
      parts[i].crowd = new_crowd();
      crowds_[parts[i].crowd - 1] = copy;
    }
  }
  cell.split = true;
}

// ---- reads

bool SharedMemory::may_read(const Cell& c, uint32_t offset, const Actor& actor, Place place, Proxy proxy) const {
  switch (c.state) {
    case State::kNever:
      report("read of shared memory that was never written", {place}, "offset ", offset);
      return false;
    case State::kInFlight:
      report("read of shared memory with a copy in flight", {place, c.write_place}, "offset ", offset,
             ": the copy has not been waited for");
      return false;
    case State::kReserved:
      report("plain access to an object in shared memory", {place, c.write_place}, "read of ", names_[c.reserved_as],
             " at offset ", offset);
      return false;
    case State::kValid:
      break;
  }
  if (c.write_step > actor.generic[c.writer]) {
    report("race: read after write", {place, c.write_place}, "shared memory offset ", offset, ", written by ",
           agent_name(c.writer), " without a barrier in between");
    return false;
  }
  if (proxy == Proxy::kAsync && !c.async && c.write_step > actor.async[c.writer]) {
    report("no fence.proxy.async", {place, c.write_place}, "shared memory offset ", offset, ", stored by ",
           agent_name(c.writer), ", is read by the async proxy");
    return false;
  }
  return true;
}

void SharedMemory::note_read(Cell& c, const Actor& actor, Place place) {
  if (c.crowd) return note_crowd(c, actor, place);
  for (int i = 0; i < kReaders; ++i)
    // A reader ordered before this one can be forgotten: whatever is ordered after this one is ordered after it too.
    if (c.read_step[i] <= actor.generic[c.reader[i]] || c.reader[i] == actor.agent) {
      c.read_step[i] = actor.step;
      c.reader[i] = actor.agent;
      c.read_place[i] = place;
      return;
    }
  c.crowd = new_crowd();
  Crowd& crowd = crowds_[c.crowd - 1];
  std::fill(crowd.steps.begin(), crowd.steps.end(), 0);
  crowd.steps.resize(clocks_->agents());
  for (int i = 0; i < kReaders; ++i) crowd.steps[c.reader[i]] = c.read_step[i];
  note_crowd(c, actor, place);
}

void SharedMemory::note_crowd(Cell& c, const Actor& actor, Place place) {
  Crowd& crowd = crowds_[c.crowd - 1];
  if (actor.agent >= crowd.steps.size()) crowd.steps.resize(clocks_->agents());
  crowd.steps[actor.agent] = actor.step;
  crowd.place = place;
}

uint16_t SharedMemory::new_crowd() {
  if (free_crowds_.empty()) {
    crowds_.emplace_back();
    return static_cast<uint16_t>(crowds_.size());
  }
  const uint16_t i = free_crowds_.back();
  free_crowds_.pop_back();
  return static_cast<uint16_t>(i + 1);
}

void SharedMemory::read(uint32_t address, size_t bytes, const Actor& actor, Place place, Proxy proxy) {
  each_cell(address, bytes, [&](Cell& c, uint32_t offset) {
    // Already checked: the same thread read it at this step and place, and nothing has written it since.
    if (c.reader[0] == actor.agent && c.read_step[0] == actor.step && c.read_place[0] == place) return true;
    if (!may_read(c, offset, actor, place, proxy)) return false;
    note_read(c, actor, place);
    return true;
  });
}

// ---- writes

bool SharedMemory::may_write(const Cell& c, uint32_t offset, const Actor& actor, Place place) const {
  if (c.state == State::kInFlight) {
    report("write over a copy in flight", {place, c.write_place}, "shared memory offset ", offset);
    return false;
  }
  if (c.state == State::kReserved) {
    report("plain access to an object in shared memory", {place, c.write_place}, "write over ", names_[c.reserved_as],
           " at offset ", offset);
    return false;
  }
  if (c.state == State::kValid && c.write_step > actor.generic[c.writer]) {
    report("race: write after write", {place, c.write_place}, "shared memory offset ", offset, ", also written by ",
           agent_name(c.writer), " without a barrier in between");
    return false;
  }
  const auto late = [&](Agent reader, Step step) { return step > actor.generic[reader] && reader != actor.agent; };
  const auto fail = [&](Agent reader, Place read_place) {
    report("race: write after read", {place, read_place}, "shared memory offset ", offset, ", read by ",
           agent_name(reader), " without a barrier in between");
    return false;
  };
  if (!c.crowd) {
    for (int i = 0; i < kReaders; ++i)
      if (late(c.reader[i], c.read_step[i])) return fail(c.reader[i], c.read_place[i]);
    return true;
  }
  const Crowd& crowd = crowds_[c.crowd - 1];
  for (size_t a = 0; a < crowd.steps.size(); ++a)
    if (late(static_cast<Agent>(a), crowd.steps[a])) return fail(static_cast<Agent>(a), crowd.place);
  return true;
}

void SharedMemory::forget_readers(Cell& c) {
  if (c.crowd) free_crowds_.push_back(static_cast<uint16_t>(c.crowd - 1));
  c.crowd = 0;
  std::fill(c.read_step, c.read_step + kReaders, 0);
}

void SharedMemory::note_write(Cell& c, const Actor& actor, Place place, State state, bool async) {
  c.write_step = actor.step;
  c.writer = actor.agent;
  c.write_place = place;
  c.state = state;
  c.async = async;
  forget_readers(c);
}

// A write that covers a whole cell merges its parts.
void SharedMemory::note_writes(uint32_t address, size_t bytes, const Actor& actor, Place place, State state,
                               bool async) {
  const uint32_t begin = address - kSharedBase, end = begin + static_cast<uint32_t>(bytes);
  for (uint32_t i = round_up(begin, kCellBytes) / kCellBytes; (i + 1) * kCellBytes <= end; ++i) {
    if (!cells_[i].split) continue;
    for (uint32_t part = 0; part < kParts; ++part) forget_readers(parts_[i * kParts + part]);
    cells_[i] = {};
  }
  each_cell(address, bytes, [&](Cell& c, uint32_t) {
    note_write(c, actor, place, state, async);
    return true;
  });
}

void SharedMemory::check_writes(uint32_t address, size_t bytes, const Actor& actor, Place place) {
  each_cell(address, bytes, [&](Cell& c, uint32_t offset) { return may_write(c, offset, actor, place); });
}

void SharedMemory::write(uint32_t address, size_t bytes, const Actor& actor, Place place, Proxy proxy) {
  check_writes(address, bytes, actor, place);
  note_writes(address, bytes, actor, place, State::kValid, proxy == Proxy::kAsync);
}

void SharedMemory::begin_copy(uint32_t address, size_t bytes, const Actor& actor, Place place) {
  check_writes(address, bytes, actor, place);
  note_writes(address, bytes, actor, place, State::kInFlight, false);
  std::memset(at(address), kPoison, bytes);
}

void SharedMemory::land(uint32_t address, size_t bytes, const Actor& actor, Proxy proxy) {
  each_cell(address, bytes, [&](Cell& c, uint32_t) {
    note_write(c, actor, c.write_place, State::kValid, proxy == Proxy::kAsync);
    return true;
  });
}

void SharedMemory::reserve(uint32_t address, size_t bytes, const Actor& actor, Place place, const char* what) {
  check_writes(address, bytes, actor, place);
  const auto known = std::find(names_.begin(), names_.end(), what);
  const auto name = static_cast<uint8_t>(known - names_.begin());
  if (known == names_.end()) names_.push_back(what);
  note_writes(address, bytes, actor, place, State::kReserved, false);
  each_cell(address, bytes, [&](Cell& c, uint32_t) {
    c.reserved_as = name;
    return true;
  });
}

void SharedMemory::release(uint32_t address, size_t bytes, const Actor& actor, Place place) {
  note_writes(address, bytes, actor, place, State::kNever, false);
}

bool SharedMemory::ordered(uint32_t address, const Actor& actor) {
  bool all = true;
  each_cell(address, 1, [&](Cell& c, uint32_t) { return all = c.write_step <= actor.generic[c.writer]; });
  return all;
}

std::string SharedMemory::agent_name(Agent agent) const {
  const size_t threads = clocks_->threads();
  if (agent < threads) {
    const std::string of = threads > threads_ ? " of rank " + std::to_string(agent / threads_) : "";
    return "thread " + std::to_string(agent % threads_) + of;
  }
  return "asynchronous agent " + std::to_string(agent - threads);
}

}  // namespace cuda_on_cpu
