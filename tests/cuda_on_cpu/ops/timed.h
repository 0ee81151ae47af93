// Time that a thread has spent inside our ops, from torch's boxed call to its return.
#pragma once
#include <torch/csrc/stable/c/shim.h>

#include <chrono>
#include <cstdint>

namespace cuda_on_cpu {

inline thread_local uint64_t nanoseconds_inside = 0;

template <void (*boxed)(StableIValue*, uint64_t, uint64_t)>
void timed(StableIValue* stack, uint64_t arguments, uint64_t results) {
  const auto begin = std::chrono::steady_clock::now();
  boxed(stack, arguments, results);
  nanoseconds_inside += static_cast<uint64_t>((std::chrono::steady_clock::now() - begin).count());
}

}  // namespace cuda_on_cpu
