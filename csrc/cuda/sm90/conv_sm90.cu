#include "cuda/sm90/conv_sm90.h"

#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/sm90/conv_sm90_finish.h"
#include "cuda/sm90/conv_sm90_kernels.h"

namespace resnet_fused::cuda {

namespace {

const std::vector<CompiledConvSm90>& menu() {
  static const std::vector<CompiledConvSm90> all = [] {
    std::vector<CompiledConvSm90> kernels;
    for (const auto of_dtype : {&conv_sm90_f16, &conv_sm90_bf16, &conv_sm90_stats_f16, &conv_sm90_stats_bf16})
      for (const CompiledConvSm90& c : of_dtype()) kernels.push_back(c);
    return kernels;
  }();
  return all;
}

}  // namespace

void launch_conv_sm90(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue) {
  if (conv_sm90_tiles({variant.tile_m, variant.tile_n, 0}, params.main.shape) == 0) return;
  for (const CompiledConvSm90& c : menu())
    if (c.variant == variant) {
      c.launch(params, queue);
      if (params.shares) launch_conv_sm90_finish(params, variant, queue);
      return;
    }
  throw std::logic_error("conv_sm90: the planned kernel is not compiled in");  // tests/test_cuda_sm90.py: never
}

std::vector<ConvFwdVariant> compiled_conv_sm90() {
  std::vector<ConvFwdVariant> variants;
  for (const CompiledConvSm90& c : menu()) variants.push_back(c.variant);
  return variants;
}

}  // namespace resnet_fused::cuda
