#include "cpu/avx512/bn_kernel.h"

namespace resnet_fused::cpu::avx512 {

const BnKernels<float, float> bn_kernels_fp32 = kernels_of<Fp32>();

}  // namespace resnet_fused::cpu::avx512
