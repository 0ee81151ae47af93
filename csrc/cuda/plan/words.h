// Names of dtypes and modes in texts. Pure.
#pragma once
#include "cuda/kernels/conv.h"

namespace resnet_fused::cuda {

// "plain", "prologue", "projection", "projection prologue", "statistics", "prologue statistics", "gradient sums"
const char* name_of(ConvMode mode);
const char* name_of(Dtype dtype);

}  // namespace resnet_fused::cuda
