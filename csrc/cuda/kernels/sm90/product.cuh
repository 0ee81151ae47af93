// wgmma of a kernel's element type.
#pragma once
#include "cuda/device/dtype.h"
#include "cuda/device/ptx/wgmma.cuh"

namespace resnet_fused::cuda {

template <typename Config>
__device__ __forceinline__ void wgmma(typename Config::Sum& d, uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (Config::kDtype == Dtype::kFloat16)
    ptx::wgmma_m64k16_f16<Config::kColumns>(d, a, b, accumulate);
  else
    ptx::wgmma_m64k16_bf16<Config::kColumns>(d, a, b, accumulate);
}

}  // namespace resnet_fused::cuda
