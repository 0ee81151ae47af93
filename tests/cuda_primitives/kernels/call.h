// A call of a primitive's kernel from Python: by name, with addresses accessible to the kernel and numbers.
#pragma once
#include <cstdint>

namespace cuda_primitives {

struct Call {
  void* const* buffers;
  const int64_t* numbers;

  const void* in(int i) const { return buffers[i]; }
  void* out(int i) const { return buffers[i]; }
  int number(int i) const { return static_cast<int>(numbers[i]); }
};

using Launch = void (*)(const Call&);

// Registers a primitive. Define it at namespace scope in the kernel's file: which files are linked depends on the
// architecture.
struct Primitive {
  Primitive(const char* name, Launch launch);
};

}  // namespace cuda_primitives
