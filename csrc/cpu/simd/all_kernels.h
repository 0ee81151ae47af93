// All kernels of one element type A: only for the files that an instruction set's flags compile.
#pragma once
#include <type_traits>

#include "cpu/simd/converted.h"
#include "cpu/simd/direct_kernel.h"
#include "cpu/simd/grouped_kernel.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/linear_kernel.h"
#include "cpu/simd/winograd_gradient_kernel.h"
#include "cpu/simd/winograd_kernel.h"

namespace resnet_fused::cpu::simd {
namespace {

// Only 16-bit types have so few digits that F(4x4, 3x3) loses none.
template <typename A>
using Tiles = std::conditional_t<sizeof(typename A::Elem) == 4, F2x3<typename A::V>, F4x3<typename A::V>>;

template <typename A, typename Fp32>
constexpr VectorKernels kVectorKernels = {direct::kKernels<A>,
                                          grouped::kKernels<A>,
                                          winograd::kKernels<A, Tiles<A>, Fp32>,
                                          winograd_gradient::kKernels<A, Tiles<A>>,
                                          linear::kKernels<A>,
                                          {}};

}  // namespace
}  // namespace resnet_fused::cpu::simd
