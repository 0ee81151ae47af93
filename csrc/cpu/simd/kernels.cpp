#include "cpu/simd/kernels.h"

#include <stdexcept>

namespace resnet_fused::cpu {

const VectorKernels& kernels_of([[maybe_unused]] Dtype dtype, [[maybe_unused]] Isa isa) {
#if defined(__x86_64__)
  const bool avx2 = isa == Isa::kAvx2;
  if (isa == Isa::kAmx && dtype == Dtype::kBFloat16) {
    static const VectorKernels kernels = [] {
      VectorKernels all = avx512::kernels_bf16;
      all.direct = amx::direct_bf16, all.direct_gradient = amx::direct_gradient_bf16;
      return all;
    }();
    return kernels;
  }
  if (isa == Isa::kAvx512Bf16 && dtype == Dtype::kBFloat16) return avx512::kernels_bf16;
  if (avx2 || isa == Isa::kAvx512) switch (dtype) {
      case Dtype::kFloat32:
        return avx2 ? avx2::kernels_fp32 : avx512::kernels_fp32;
      case Dtype::kBFloat16:
        return avx2 ? avx2::kernels_converted_bf16 : avx512::kernels_converted_bf16;
      case Dtype::kFloat16:
        return avx2 ? avx2::kernels_fp16 : avx512::kernels_fp16;
      case Dtype::kFloat64:
        break;
    }
#endif
  throw std::logic_error("the plan chose kernels that do not exist for this type and processor");
}

}  // namespace resnet_fused::cpu
