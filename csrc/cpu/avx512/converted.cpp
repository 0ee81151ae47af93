#include "cpu/avx512/vector.h"
#include "cpu/simd/direct_kernel.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/winograd_gradient_kernel.h"
#include "cpu/simd/winograd_kernel.h"

namespace resnet_fused::cpu::avx512 {
namespace {

using Tiles = simd::F4x3<Vector>;

template <typename A>
constexpr VectorKernels kKernels = {simd::direct::kKernels<A>, simd::winograd::kKernels<A, Tiles, Fp32>,
                                    simd::winograd_gradient::kKernels<A, Tiles>};

}  // namespace

constexpr VectorKernels kernels_converted_bf16 = kKernels<Converted<ConvertsBf16>>;
constexpr VectorKernels kernels_fp16 = kKernels<Converted<ConvertsFp16>>;

}  // namespace resnet_fused::cpu::avx512
