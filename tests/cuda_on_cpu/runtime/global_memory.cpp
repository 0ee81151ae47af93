#include "runtime/global_memory.h"

#include <algorithm>

#include "runtime/block.h"
#include "runtime/report.h"

namespace cuda_on_cpu {

GlobalMemory global_memory;

namespace {

// Bits of an access: launch 8 | block 24 | thread 10 | read-only load 1 | step 21
constexpr int kLaunchShift = 56, kBlockShift = 32, kThreadShift = 22, kReadOnlyShift = 21;
constexpr uint64_t kStepMask = (1u << kReadOnlyShift) - 1;

uint64_t access_of(const Thread& t, Load kind) {
  const Block& b = *t.block;
  const uint64_t step = std::min<uint64_t>(b.clocks.now(t.agent), kStepMask);
  return static_cast<uint64_t>(b.launch().number) << kLaunchShift | b.number() << kBlockShift |
         static_cast<uint64_t>(t.id) << kThreadShift |
         static_cast<uint64_t>(kind == Load::kReadOnly) << kReadOnlyShift | step;
}

uint32_t launch_of(uint64_t access) { return static_cast<uint32_t>(access >> kLaunchShift); }
uint32_t block_of(uint64_t access) { return access >> kBlockShift & 0xffffff; }
Agent thread_of(uint64_t access) { return access >> kThreadShift & (kMostThreads - 1); }
bool is_read_only(uint64_t access) { return access >> kReadOnlyShift & 1; }

bool same_thread(uint64_t a, uint64_t b) { return a >> kThreadShift == b >> kThreadShift; }

// Whether an earlier access happens before the next access of `thread`. Accesses of other launches always do.
bool ordered(uint64_t earlier, const Thread& thread) {
  const Block& b = *thread.block;
  if (!earlier || launch_of(earlier) != b.launch().number) return true;
  const size_t agent = thread.agent - thread.id + thread_of(earlier);
  return block_of(earlier) == b.number() && (earlier & kStepMask) <= b.clocks.generic(thread.agent)[agent];
}

std::string who(uint64_t access) {
  return "block " + std::to_string(block_of(access)) + " thread " + std::to_string(thread_of(access));
}

}  // namespace

GlobalMemory::Tracked::Tracked(Buffer b) : Buffer(std::move(b)) {
  if (!writable()) return;
  writer.reset(new Access[cells()]());
  readers.reset(new Access[cells() * kReaders]());
  writer_place.reset(new std::atomic<Place>[cells()]());
}

void GlobalMemory::reset(std::vector<Buffer> buffers) {
  buffers_.clear();
  for (Buffer& b : buffers) buffers_.emplace_back(std::move(b));
}

void GlobalMemory::add(Buffer buffer) {
  const auto freed = [&](const Tracked& b) {
    return b.begin < buffer.begin + buffer.bytes && buffer.begin < b.begin + b.bytes;
  };
  for (const Tracked& b : buffers_)
    if (freed(b)) report_unwritten(b);
  buffers_.erase(std::remove_if(buffers_.begin(), buffers_.end(), freed), buffers_.end());
  buffers_.emplace_back(std::move(buffer));
}

void GlobalMemory::report_unwritten() {
  for (const Tracked& b : buffers_) report_unwritten(b);
}

void GlobalMemory::report_unwritten(const Tracked& b) {
  if (b.kind != BufferKind::kOutput && b.kind != BufferKind::kInOut) return;
  size_t unwritten = 0, first = 0;
  for (size_t i = b.cells(); i-- > 0;)
    if (!b.writer[i]) ++unwritten, first = i;
  if (unwritten)
    report("output never written", {}, std::min(unwritten * b.cell, b.bytes), " bytes of ", b.name, ", the first at + ",
           first * b.cell);
}

bool GlobalMemory::owns(const void* address) const {
  const char* a = static_cast<const char*>(address);
  return std::any_of(buffers_.begin(), buffers_.end(),
                     [&](const Tracked& b) { return a >= b.begin && a < b.begin + b.bytes; });
}

// The buffer that contains the whole access; null, after a report, if none does or the access is misaligned.
GlobalMemory::Tracked* GlobalMemory::find(const char* what, const void* address, size_t bytes, size_t alignment,
                                          Place place) {
  const char* a = static_cast<const char*>(address);
  const Tracked* nearest = nullptr;
  ptrdiff_t least = 0;
  for (Tracked& b : buffers_) {
    const ptrdiff_t offset = a - b.begin,
                    past = offset + static_cast<ptrdiff_t>(bytes) - static_cast<ptrdiff_t>(b.bytes);
    if (offset >= 0 && past <= 0) {
      if (reinterpret_cast<uintptr_t>(address) % alignment) {
        report("global memory misaligned", {place}, what, " of ", bytes, " bytes at ", b.name, " + ", offset);
        return nullptr;
      }
      if (b.writable() && (offset % b.cell || bytes % b.cell)) {
        report("single bytes of global memory", {place}, what, " at ", b.name, " + ", offset,
               ": of this buffer the emulator tells ", b.cell, " bytes apart");
        return nullptr;
      }
      return &b;
    }
    const ptrdiff_t distance = std::max(-offset, past);
    if (!nearest || distance < least) nearest = &b, least = distance;
  }
  if (nearest)
    report("global memory out of bounds", {place}, what, " of ", bytes, " bytes at ", nearest->name, " + ",
           a - nearest->begin, ", which has ", nearest->bytes);
  else
    report("global memory out of bounds", {place}, what, " of ", bytes, " bytes with no buffer known");
  return nullptr;
}

void GlobalMemory::check_load(Tracked& b, size_t cell, Thread& thread, uint64_t me, Load kind, Place place) {
  // A reader records itself, then checks the writer; a writer records itself, then checks the readers. So of two
  // concurrent accesses at least one sees the other.
  Access* slots = &b.readers[cell * kReaders];
  int slot = 0;
  for (int i = kReaders; i-- > 0;) {
    const uint64_t before = slots[i];
    if (!before || same_thread(before, me) || launch_of(before) != launch_of(me)) slot = i;
  }
  slots[slot] = me;
  const uint64_t writer = b.writer[cell];
  const auto offset = [&] { return b.name + " + " + std::to_string(cell * b.cell); };
  if (!writer) {
    if (b.kind == BufferKind::kOutput || b.kind == BufferKind::kScratch)
      report("read of global memory that was never written", {place}, offset());
    else if (kind == Load::kReadOnly && b.kind == BufferKind::kInOut)
      report("ld.global.nc of what the kernel writes", {place}, offset());
    return;
  }
  const Place other = b.writer_place[cell];
  if (kind == Load::kReadOnly && launch_of(writer) == launch_of(me))
    report("ld.global.nc of what the kernel writes", {place, other}, offset());
  else if (!ordered(writer, thread))
    report("race: read after write", {place, other}, offset(), ", written by ", who(writer));
}

void GlobalMemory::check_store(Tracked& b, size_t cell, Thread& thread, uint64_t me, Place place) {
  const uint64_t writer = b.writer[cell].exchange(me);
  const Place other = b.writer_place[cell].exchange(place);
  const auto offset = [&] { return b.name + " + " + std::to_string(cell * b.cell); };
  const bool again = b.kind == BufferKind::kScratch || b.kind == BufferKind::kWorking;
  if (writer && (!again || launch_of(writer) == launch_of(me)))
    return report("global memory written twice", {place, other}, offset(), ", before by ", who(writer));
  for (int i = 0; i < kReaders; ++i) {
    const uint64_t reader = b.readers[cell * kReaders + i];
    if (launch_of(reader) != launch_of(me)) continue;
    if (is_read_only(reader))
      return report("ld.global.nc of what the kernel writes", {place}, offset(), ", read by ", who(reader));
    if (!same_thread(reader, me) && !ordered(reader, thread))
      return report("race: write after read", {place}, offset(), ", read by ", who(reader));
  }
}

// Until griddepcontrol.wait, the previous grid may still write what this thread reads and read what it writes.
void GlobalMemory::check_grids(const char* what, const Thread& thread, const void* address, Place place) {
  if (!thread.waited_for_grids)
    report("global memory before griddepcontrol.wait", {place}, what, " of ", address, " in ",
           thread.block->launch().name);
}

bool GlobalMemory::load(Thread& thread, const void* address, size_t bytes, size_t alignment, Load kind, Place place) {
  check_grids("load", thread, address, place);
  Tracked* b = find("load", address, bytes, alignment, place);
  if (!b) return false;
  thread.block->counters.bytes_loaded += bytes;
  if (!b->writable()) return true;
  const uint64_t me = access_of(thread, kind);
  const size_t first = (static_cast<const char*>(address) - b->begin) / b->cell;
  for (size_t i = first; i < first + bytes / b->cell; ++i) check_load(*b, i, thread, me, kind, place);
  return true;
}

bool GlobalMemory::store(Thread& thread, void* address, size_t bytes, size_t alignment, Place place) {
  check_grids("store", thread, address, place);
  Tracked* b = find("store", address, bytes, alignment, place);
  if (!b) return false;
  if (!b->writable()) {
    report("store to a read-only buffer", {place}, b->name, " + ", static_cast<char*>(address) - b->begin);
    return false;
  }
  thread.block->counters.bytes_stored += bytes;
  const uint64_t me = access_of(thread, Load::kPlain);
  const size_t first = (static_cast<char*>(address) - b->begin) / b->cell;
  for (size_t i = first; i < first + bytes / b->cell; ++i) check_store(*b, i, thread, me, place);
  return true;
}

}  // namespace cuda_on_cpu
