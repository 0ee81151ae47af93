#include "cuda_on_cpu.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <utility>

namespace cuda_on_cpu {

namespace {

constexpr size_t kMostErrors = 8;

struct Session {
  std::vector<Buffer> buffers;
  bool reverse = false;
  uint64_t thread = 0;  // 1 for the first
  Report report;
} session;

template <typename... Parts>
void fail(const Parts&... parts) {
  if (++session.report.error_count > kMostErrors) return;
  std::ostringstream s;
  (s << ... << parts);
  s << ", block " << block_index.x << " thread " << thread_index.x;
  session.report.errors.push_back(s.str());
}

// The buffer that holds the whole access, or null after a report of where it went.
Buffer* find(const char* what, const char* address, size_t bytes) {
  const Buffer* nearest = nullptr;
  ptrdiff_t least = 0;
  for (Buffer& b : session.buffers) {
    const ptrdiff_t offset = address - b.begin, past = offset + static_cast<ptrdiff_t>(bytes - b.bytes);
    if (offset >= 0 && past <= 0) {
      if (reinterpret_cast<uintptr_t>(address) % bytes == 0) return &b;
      fail("misaligned ", what, " of ", bytes, " bytes at ", b.name, " + ", offset);
      return nullptr;
    }
    const ptrdiff_t distance = std::max(-offset, past);
    if (!nearest || distance < least) nearest = &b, least = distance;
  }
  if (nearest)
    fail(what, " of ", bytes, " bytes out of bounds at ", nearest->name, " + ", address - nearest->begin,
         ", which has ", nearest->bytes);
  else
    fail(what, " of ", bytes, " bytes with no buffer known");
  return nullptr;
}

}  // namespace

void begin(std::vector<Buffer> buffers, bool reverse) {
  session = {};
  session.buffers = std::move(buffers);
  session.reverse = reverse;
  for (Buffer& b : session.buffers)
    if (b.writable) b.writer.assign(b.bytes, 0);
}

Report end() {
  for (const Buffer& b : session.buffers) {
    const auto unwritten = std::count(b.writer.begin(), b.writer.end(), 0u);
    if (unwritten)
      fail(unwritten, " bytes of ", b.name, " never written, the first at + ",
           std::find(b.writer.begin(), b.writer.end(), 0u) - b.writer.begin());
  }
  return std::move(session.report);
}

bool reversed() { return session.reverse; }
void next_thread() { ++session.thread; }

void load(void* to, const void* address, size_t bytes, Load kind) {
  const char* from = static_cast<const char*>(address);
  std::memset(to, 0xff, bytes);  // a NaN in every dtype, for an access that must not be made
  const Buffer* b = find("load", from, bytes);
  if (!b) return;
  if (b->writable) {
    const size_t at = from - b->begin;
    if (kind == Load::kReadOnly) fail("ld.global.nc of ", b->name, " + ", at, ", which the kernel writes");
    for (size_t i = at; i < at + bytes; ++i)
      if (b->writer[i] && b->writer[i] != session.thread) {
        fail("race: ", b->name, " + ", i, " was written by another thread");
        break;
      }
  }
  std::memcpy(to, from, bytes);
  session.report.bytes_loaded += bytes;
  session.report.wide_accesses += bytes == 16;
}

void store(void* address, const void* from, size_t bytes) {
  char* to = static_cast<char*>(address);
  Buffer* b = find("store", to, bytes);
  if (!b) return;
  const size_t at = to - b->begin;
  if (!b->writable) return fail("store to ", b->name, " + ", at, ", which is read-only");
  for (size_t i = at; i < at + bytes; ++i) {
    if (b->writer[i]) {
      fail(b->name, " + ", i, " written twice");
      break;
    }
    b->writer[i] = session.thread;
  }
  std::memcpy(to, from, bytes);
  session.report.bytes_stored += bytes;
  session.report.wide_accesses += bytes == 16;
}

}  // namespace cuda_on_cpu
