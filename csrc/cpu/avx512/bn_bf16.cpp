#include "cpu/avx512/bn_kernel.h"

namespace resnet_fused::cpu::avx512 {

const BnKernels<BFloat16, float> bn_kernels_bf16 = kernels_of<Bf16>();

}  // namespace resnet_fused::cpu::avx512
