// Counts C++ allocations of the op layer, without those inside torch's libraries.
#pragma once
#include <cstdint>

namespace cuda_on_cpu {

uint64_t allocations();  // by this thread since it started

}  // namespace cuda_on_cpu
