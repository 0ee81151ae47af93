// Division by a host-known number: a multiplication and a shift. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda {

// 2^shift >= divisor, and multiplier is 2^(31 + shift) / divisor rounded up, which is less than 2^32. The product with
// n < 2^31 is then too large by less than 2^31 / 2^(31 + shift) <= 1 / divisor: too little to reach the next quotient.
struct Divisor {
  uint32_t divisor = 1, multiplier = 1u << 31, shift = 0;

  constexpr Divisor() = default;
  explicit constexpr Divisor(uint32_t by) : divisor(by) {
    while ((uint64_t{1} << shift) < by) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << (31 + shift)) + by - 1) / by);
  }

  constexpr uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>(uint64_t{2 * n} * multiplier >> 32) >> shift;
  }
};

}  // namespace resnet_fused::cuda
