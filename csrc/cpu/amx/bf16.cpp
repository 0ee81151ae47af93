#include "cpu/amx/task.h"
#include "cpu/simd/kernels.h"

namespace resnet_fused::cpu::amx {

constexpr DirectKernels direct_bf16 = {
    kLanes, simd::direct::packed_bytes<Bf16>, tiling, simd::direct::pack<Bf16>, run, /*depth_first=*/true};

}  // namespace resnet_fused::cpu::amx
