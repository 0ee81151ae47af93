// Where in a kernel something happened: a code address, which Python turns into a source line when there is something
// to report.
#pragma once
#include <cstdint>

namespace cuda_on_cpu {

// A library of kernels in memory, from its first byte to behind its last.
struct Image {
  const char *begin = nullptr, *end = nullptr;
};
extern Image image;  // of the library whose session this is

using Place = uint32_t;  // bytes from the start of the image; 0 for none

// Of a return address, the call before it.
inline Place place_of(const void* return_address) {
  return static_cast<Place>(static_cast<const char*>(return_address) - image.begin) - 1;
}

}  // namespace cuda_on_cpu

// The place in the kernel that called the function in which this stands. That must be a function of the runtime which
// kernels, or their always_inline instructions, call directly.
#define CUDA_ON_CPU_CALLER (::cuda_on_cpu::place_of(__builtin_return_address(0)))
