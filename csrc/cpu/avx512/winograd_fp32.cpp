#include "cpu/avx512/winograd_kernel.h"

namespace resnet_fused::cpu::avx512 {

const WinogradKernels& winograd_fp32() { return kWinogradKernels<Fp32, F2x3>; }

}  // namespace resnet_fused::cpu::avx512
