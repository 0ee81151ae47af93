// torch's parallel_for, out of which a task's exception comes as it was thrown.
#pragma once
#include <exception>
#include <mutex>

#include "common/torch_abi.h"

namespace resnet_fused {

// run(begin, end) on parts of [begin, end). The stable ABI carries an exception over as an error code, with the place
// in torch's headers for a message; so none is let out, and the first is thrown again here.
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
