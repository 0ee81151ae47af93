// The compiled sm90 kernels of each element type, which sm90/conv_sm90.cu makes one menu of. A file each, so that they
// compile side by side.
#pragma once
#include <vector>

#include "cuda/queue.h"
#include "cuda/sm90/conv_sm90.h"

namespace resnet_fused::cuda {

struct CompiledConvSm90 {
  ConvFwdVariant variant;
  void (*launch)(const ConvFwdParams&, const Queue&);
};

std::vector<CompiledConvSm90> conv_sm90_f16();
std::vector<CompiledConvSm90> conv_sm90_bf16();

// With statistics.
std::vector<CompiledConvSm90> conv_sm90_stats_f16();
std::vector<CompiledConvSm90> conv_sm90_stats_bf16();

}  // namespace resnet_fused::cuda
