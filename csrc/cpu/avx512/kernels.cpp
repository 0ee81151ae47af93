#include "cpu/avx512/vector.h"
#include "cpu/simd/all_kernels.h"

namespace resnet_fused::cpu::avx512 {

constexpr VectorKernels kernels_fp32 = simd::kVectorKernels<Fp32, Fp32>;
constexpr VectorKernels kernels_converted_bf16 = simd::kVectorKernels<simd::Converted<Fp32, ConvertsBf16>, Fp32>;
constexpr VectorKernels kernels_fp16 = simd::kVectorKernels<simd::Converted<Fp32, ConvertsFp16>, Fp32>;

}  // namespace resnet_fused::cpu::avx512
