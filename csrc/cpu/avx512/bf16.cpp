#include "cpu/avx512/vector.h"
#include "cpu/simd/all_kernels.h"

namespace resnet_fused::cpu::avx512 {

constexpr VectorKernels kernels_bf16 = simd::kVectorKernels<Bf16, Fp32>;

}  // namespace resnet_fused::cpu::avx512
