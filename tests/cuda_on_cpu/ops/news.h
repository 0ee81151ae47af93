// Counts what C++ code of the op layer allocates; torch's own libraries allocate by themselves.
#pragma once
#include <cstdint>

namespace cuda_on_cpu {

uint64_t allocations();  // of this thread, since it began

}  // namespace cuda_on_cpu
