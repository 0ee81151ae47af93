#include "ops/news.h"

#include <cstddef>

// The linker's --wrap routes every operator new of this library through here.
extern "C" void* __real__Znwm(size_t bytes);
extern "C" void* __wrap__Znwm(size_t bytes);

namespace {

thread_local uint64_t count = 0;

}  // namespace

void* __wrap__Znwm(size_t bytes) {
  ++count;
  return __real__Znwm(bytes);
}

namespace cuda_on_cpu {

uint64_t allocations() { return count; }

}  // namespace cuda_on_cpu
