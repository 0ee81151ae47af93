// Division by a number known on the host, as a multiplication and a shift. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda {

// Exact for n < 2^31. shift is the smallest with 2^shift >= divisor; multiplier is 2^(31 + shift) / divisor rounded up,
// less than 2^32. Rounding up adds less than n / 2^(31 + shift) < 1 / divisor to the quotient, too little to reach the
// next integer.
struct FastDivmod {
  uint32_t divisor = 1, multiplier = 1u << 31, shift = 0;

  constexpr FastDivmod() = default;
  explicit constexpr FastDivmod(uint32_t by) : divisor(by) {
    while ((uint64_t{1} << shift) < by) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + by - 1) / by);
  }

  constexpr uint32_t div(uint32_t n) const {
    return static_cast<uint32_t>(uint64_t{2 * n} * multiplier >> 32) >> shift;
  }
};

}  // namespace resnet_fused::cuda
