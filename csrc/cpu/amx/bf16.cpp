#include "cpu/amx/direct_tile.h"
#include "cpu/simd/direct_kernel.h"
#include "cpu/simd/kernels.h"

namespace resnet_fused::cpu::amx {

constexpr DirectKernels direct_bf16 = simd::direct::kKernels<Bf16>;

}  // namespace resnet_fused::cpu::amx
