// Where in a kernel something happened: a code address, which Python turns into a source line when there is something
// to report.
#pragma once
#include <cstdint>

// The first byte of this module's image; the linker defines it.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start;

namespace cuda_on_cpu {

using Place = uint32_t;  // bytes from the start of the module; 0 for none

// Of a return address, the call before it.
inline Place place_of(const void* return_address) {
  return static_cast<Place>(static_cast<const char*>(return_address) - &__ehdr_start) - 1;
}

}  // namespace cuda_on_cpu

// The place in the kernel that called the function in which this stands. That must be a function of the runtime which
// kernels, or their always_inline instructions, call directly.
#define CUDA_ON_CPU_CALLER (::cuda_on_cpu::place_of(__builtin_return_address(0)))
