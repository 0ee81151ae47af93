// How filters and pixels are laid out for the direct convolution.
#pragma once
#include <type_traits>

#include "cpu/simd/direct_tile.h"

namespace resnet_fused::cpu::simd::direct {
namespace {

template <typename A>
constexpr bool kConverts = !std::is_same_v<typename A::Elem, typename A::Operand>;

inline int round_up(int a, int b) { return (a + b - 1) / b * b; }

template <typename A>
typename A::Operand operand(typename A::Elem v) {
  if constexpr (kConverts<A>)
    return A::value(v);
  else
    return v;
}

// If C is odd and a step takes two channels, each output column gets its own copy of the S * C values under it, padded
// once, instead of padding every pixel: 22 values instead of 28 for the 7x3 of an RGB stem.
template <typename A>
constexpr bool patches(int c, int s) {
  return c % A::kPack && s > 1;
}

// Values of one kernel row, padding to whole steps included.
template <typename A>
int row_values(int c, int s) {
  return patches<A>(c, s) ? round_up(s * c, A::kPack) : s * round_up(c, A::kPack);
}

}  // namespace
}  // namespace resnet_fused::cpu::simd::direct
