#include "cpu/amx/task.h"
#include "cpu/amx/weight_gradient.h"
#include "cpu/simd/kernels.h"

namespace resnet_fused::cpu::amx {

constexpr DirectKernels direct_bf16 = {
    kLanes, simd::direct::packed_bytes<Bf16>, tiling, simd::direct::pack<Bf16>, run, /*depth_first=*/true};
constexpr DirectGradientKernels direct_gradient_bf16 = {weight_gradient::tile, weight_gradient::sum,
                                                        weight_gradient::row_blocks, weight_gradient::finish};

}  // namespace resnet_fused::cpu::amx
