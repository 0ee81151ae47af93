// A position in a kernel, as a code address. Python converts it to a source line for reports.
#pragma once
#include <cstdint>

namespace cuda_on_cpu {

// The memory range [begin, end) of a loaded kernel library.
struct Image {
  const char *begin = nullptr, *end = nullptr;
};
extern Image image;  // the library of the current session

using Place = uint32_t;  // bytes from the start of the image; 0 for none

// The call instruction before a return address.
inline Place place_of(const void* return_address) {
  return static_cast<Place>(static_cast<const char*>(return_address) - image.begin) - 1;
}

}  // namespace cuda_on_cpu

// The place in the kernel that called the current function. Use it only in runtime functions that kernels, or their
// always_inline instruction wrappers, call directly.
#define CUDA_ON_CPU_CALLER (::cuda_on_cpu::place_of(__builtin_return_address(0)))
