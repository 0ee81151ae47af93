#include "cpu/avx512/winograd_kernel.h"

namespace resnet_fused::cpu::avx512 {

const WinogradKernels& winograd_bf16() { return kWinogradKernels<Bf16, F4x3>; }

}  // namespace resnet_fused::cpu::avx512
