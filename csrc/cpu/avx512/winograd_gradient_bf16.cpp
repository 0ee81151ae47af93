#include "cpu/avx512/winograd_gradient_kernel.h"

namespace resnet_fused::cpu::avx512 {

const WinogradGradientKernels& winograd_gradient_bf16() { return kWinogradGradientKernels<Bf16, F4x3>; }

}  // namespace resnet_fused::cpu::avx512
