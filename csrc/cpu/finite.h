// Tests whether a tensor is free of infinities and NaNs, in one read.
#pragma once
#include "common/torch_abi.h"

namespace resnet_fused::cpu {

// x is dense float32 or bfloat16.
bool all_finite(const Tensor& x);
bool all_finite(const void* data, int64_t count, bool bf16);  // on the calling thread

}  // namespace resnet_fused::cpu
