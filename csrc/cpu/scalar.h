// Storage types and their arithmetic type. Conversions round to nearest even and keep NaN.
#pragma once
#include <cstdint>
#include <cstring>

namespace resnet_fused::cpu {

struct BFloat16 {
  uint16_t bits;
};

inline float load(float v) { return v; }
inline double load(double v) { return v; }
inline float load(_Float16 v) { return static_cast<float>(v); }
inline float load(BFloat16 v) {
  const uint32_t u = static_cast<uint32_t>(v.bits) << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline void store(float* p, float v) { *p = v; }
inline void store(double* p, double v) { *p = v; }
inline void store(_Float16* p, float v) { *p = static_cast<_Float16>(v); }
inline void store(BFloat16* p, float v) {
  uint32_t u;
  std::memcpy(&u, &v, 4);
  const uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  p->bits = static_cast<uint16_t>(v != v ? 0x7fc0 : rounded);
}

// The largest value that store() rounds to 0. A ReLU is open above it. The backward pass recomputes the value with more
// digits than were stored, and this threshold makes it agree with the forward pass on which ReLUs are open.
template <typename T>
constexpr double vanishes = 0;
template <>
constexpr double vanishes<_Float16> = 0x1p-25;
template <>
constexpr double vanishes<BFloat16> = 0x1p-134;

template <typename T>
struct AccType {
  using type = float;
};
template <>
struct AccType<double> {
  using type = double;
};

}  // namespace resnet_fused::cpu
