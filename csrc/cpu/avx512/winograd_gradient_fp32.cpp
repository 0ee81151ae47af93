#include "cpu/avx512/winograd_gradient_kernel.h"

namespace resnet_fused::cpu::avx512 {

const WinogradGradientKernels& winograd_gradient_fp32() { return kWinogradGradientKernels<Fp32, F2x3>; }

}  // namespace resnet_fused::cpu::avx512
