#include "cpu/avx2/vector.h"
#include "cpu/simd/direct_kernel.h"
#include "cpu/simd/kernels.h"
#include "cpu/simd/winograd_gradient_kernel.h"
#include "cpu/simd/winograd_kernel.h"

namespace resnet_fused::cpu::avx2 {

using Tiles = simd::F2x3<Vector>;

constexpr VectorKernels kernels_fp32 = {simd::direct::kKernels<Fp32>, simd::winograd::kKernels<Fp32, Tiles, Fp32>,
                                        simd::winograd_gradient::kKernels<Fp32, Tiles>};

}  // namespace resnet_fused::cpu::avx2
