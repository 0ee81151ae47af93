// The compiled kernels of each element type, which sm90/conv_rows.cu makes one menu of.
#pragma once
#include <vector>

#include "cuda/queue.h"
#include "cuda/sm90/conv_rows.h"

namespace resnet_fused::cuda {

struct CompiledConvRows {
  ConvFwdVariant variant;
  void (*launch)(const ConvFwdParams&, const Queue&);
};

std::vector<CompiledConvRows> conv_rows_f16();
std::vector<CompiledConvRows> conv_rows_bf16();

}  // namespace resnet_fused::cuda
