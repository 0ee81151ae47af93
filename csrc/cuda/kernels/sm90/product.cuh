// wgmma of an element type.
#pragma once
#include "cuda/device/ptx/wgmma.cuh"
#include "cuda/device/types.h"

namespace resnet_fused::cuda {

template <Dtype kDtype, int kColumns>
__device__ __forceinline__ void wgmma(float (&d)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (kDtype == Dtype::kFloat16)
    ptx::wgmma_m64k16_f16<kColumns>(d, a, b, accumulate);
  else
    ptx::wgmma_m64k16_bf16<kColumns>(d, a, b, accumulate);
}

}  // namespace resnet_fused::cuda
