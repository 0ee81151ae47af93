// What tests see of the emulator: begin(), launches of kernels, end().
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
//   kRotate  another warp after every instruction that a warp executes as one; blocks and lanes backwards
//   kRandom  warps, lanes, blocks, and when copies land: from a seed
enum class Schedule : int { kStay, kRotate, kRandom };

enum class BufferKind : int {
  kInput,    // never written
  kOutput,   // every byte is written exactly once from begin() to end(), and read only afterwards
  kInOut,    // the same, but there is something to read before
  kScratch,  // a byte is written at most once a launch, and read only afterwards
  kWorking,  // the same, but there may be something to read before
};

// Global memory that kernels may touch. Buffers do not overlap.
struct Buffer {
  std::string name;
  char* begin;
  size_t bytes;
  BufferKind kind;
  size_t cell = 2;  // what is told apart, in bytes: 2, or where its elements are that small, 1
};

// Exact, whatever ran at the same time as what.
struct Counters {
  uint64_t bytes_loaded = 0, bytes_stored = 0;  // global memory
  uint64_t wide_accesses = 0;                   // ld.global and st.global of 16 bytes
  uint64_t bytes_copied = 0;                    // by cp.async and the like; loaded bytes too
  uint64_t collectives = 0;                     // instructions that a warp executed as one

  void add(const Counters& other);
};

struct Options {
  Schedule schedule = Schedule::kStay;
  uint32_t seed = 1;
  unsigned workers = 0;  // clusters that run at once; 0: one a core
};

struct Report {
  std::vector<Finding> findings;
  Counters counters;
  std::vector<std::string> launched;  // the kernels, as their LAUNCH says them
  bool given_up = false;              // a launch was abandoned: memory is not what the kernel would have made of it
};

// image: of the library whose kernels are launched, and whose constants they may read.
void begin(const Image& image, std::vector<Buffer> buffers, const Options& options);
// Memory that is allocated between launches. What it overlaps has been freed.
void add_buffer(Buffer buffer);
Report end();

// One launch of a session.
struct Launch {
  dim3 grid, block;
  unsigned cluster;  // blocks that are neighbours along x
  size_t shared_bytes;
  const char* name;
  bool dependent;         // may start before the launch ahead of it has ended
  void (*kernel)(void*);  // called on every thread's fiber, with closure
  void* closure;
  uint32_t number;  // of the session's launches, from 1
  Schedule schedule;
  uint32_t seed;
  mutable std::atomic<bool> given_up{false};
};

}  // namespace cuda_on_cpu
