// An element type of 16 bits that is converted to float32 once, into the slab and the packed weights. T converts a
// register of an instruction set whose float32 is Fp32.
#pragma once
#include <cstdint>

namespace resnet_fused::cpu::simd {
namespace {

template <typename Fp32, typename T>
struct Converted : Fp32 {
  using Reg = typename Fp32::V::Reg;
  using Mask = typename Fp32::V::Mask;
  using Elem = uint16_t;
  static constexpr int kPart = 0;  // one running sum: the final rounding is at least 8,000 times coarser
  static inline Reg load(const uint16_t* p, Mask lanes) { return T::widen(T::load(p, lanes)); }
  static inline void store(uint16_t* p, Reg v, Mask lanes) { T::store(p, T::narrow(v), lanes); }
  static inline Reg round(Reg v) { return T::widen(T::narrow(v)); }
  static inline float value(uint16_t v) { return T::value(v); }
};

}  // namespace
}  // namespace resnet_fused::cpu::simd
