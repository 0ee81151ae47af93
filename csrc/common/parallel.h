// torch's parallel_for, rethrowing a task's exception unchanged.
#pragma once
#include <exception>
#include <mutex>

#include "common/torch_abi.h"

namespace resnet_fused {

// Calls run(begin, end) on parts of [begin, end). The stable ABI turns an exception into an error code and loses its
// message, so each task catches its exceptions here and the first one is rethrown.
template <typename Run>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Run& run) {
  std::exception_ptr first;
  std::mutex mutex;
  torch::stable::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) {
    try {
      run(from, to);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!first) first = std::current_exception();
    }
  });
  if (first) std::rethrow_exception(first);
}

}  // namespace resnet_fused
