#include "cpu/avx512/vector.h"
#include "cpu/simd/direct_kernel.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/winograd_gradient_kernel.h"
#include "cpu/simd/winograd_kernel.h"

namespace resnet_fused::cpu::avx512 {

using Tiles = simd::F4x3<Vector>;

constexpr VectorKernels kernels_bf16 = {simd::direct::kKernels<Bf16>, simd::winograd::kKernels<Bf16, Tiles, Fp32>,
                                        simd::winograd_gradient::kKernels<Bf16, Tiles>};

}  // namespace resnet_fused::cpu::avx512
