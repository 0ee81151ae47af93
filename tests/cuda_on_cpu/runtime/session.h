// The emulator's interface for tests: begin(), kernel launches, end().
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/report.h"

namespace cuda_on_cpu {

// Which thread runs next. Checks do not depend on it; the results of a wrong kernel do.
//   kStay    a warp runs as long as it can; blocks in order
//   kRotate  switches warps after every warp-level instruction; blocks and lanes in reverse
//   kRandom  warps, lanes, blocks and the landing of copies drawn from a seed
enum class Schedule : int { kStay, kRotate, kRandom };

enum class BufferKind : int {
  kInput,    // never written
  kOutput,   // every byte is written exactly once between begin() and end(), and may be read only after that
  kInOut,    // like kOutput, but initialised: may be read before it is written
  kScratch,  // a byte is written at most once per launch, and may be read only after that
  kWorking,  // like kScratch, but initialised: may be read before it is written
};

// Global memory that kernels may touch. Buffers do not overlap.
struct Buffer {
  std::string name;
  char* begin;
  size_t bytes;
  BufferKind kind;
  size_t cell = 2;  // tracking granularity in bytes: 2, or 1 for one-byte elements
};

// Independent of the schedule and the number of workers.
struct Counters {
  uint64_t bytes_loaded = 0, bytes_stored = 0;  // global memory
  uint64_t wide_accesses = 0;                   // ld.global and st.global of 16 bytes
  uint64_t bytes_copied = 0;                    // by cp.async and TMA loads; also counted as loaded
  uint64_t collectives = 0;                     // warp-level instructions executed

  void add(const Counters& other);
};

struct Options {
  Schedule schedule = Schedule::kStay;
  uint32_t seed = 1;
  unsigned workers = 0;  // clusters run concurrently; 0: one per core
};

struct Report {
  std::vector<Finding> findings;
  Counters counters;
  std::vector<std::string> launched;  // kernels, as spelled in LAUNCH
  bool given_up = false;              // a launch was aborted, so the contents of memory are meaningless
};

// image: the library whose kernels are launched. They may read its constants.
void begin(const Image& image, std::vector<Buffer> buffers, const Options& options);
// Adds memory allocated between launches. Buffers that it overlaps count as freed.
void add_buffer(Buffer buffer);
Report end();

// One launch of a session.
struct Launch {
  dim3 grid, block;
  unsigned cluster;  // blocks per cluster, neighbours along x
  size_t shared_bytes;
  const char* name;
  bool dependent;         // may start before the previous launch ends (programmatic dependent launch)
  void (*kernel)(void*);  // called with closure on every thread's fiber
  void* closure;
  uint32_t number;  // position among the session's launches, from 1
  Schedule schedule;
  uint32_t seed;
  mutable std::atomic<bool> given_up{false};
};

}  // namespace cuda_on_cpu
