#include "cuda/sm90/conv_rows.h"

#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/sm90/conv_rows_kernels.h"

namespace resnet_fused::cuda {

namespace {

const std::vector<CompiledConvRows>& menu() {
  static const std::vector<CompiledConvRows> all = [] {
    std::vector<CompiledConvRows> kernels = conv_rows_f16();
    for (const CompiledConvRows& c : conv_rows_bf16()) kernels.push_back(c);
    return kernels;
  }();
  return all;
}

}  // namespace

void launch_conv_rows(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue) {
  if (conv_rows_tiles({variant.tile_m, variant.tile_n, 1}, params.main.shape) == 0) return;
  for (const CompiledConvRows& c : menu())
    if (c.variant == variant) return c.launch(params, queue);
  throw std::logic_error("conv_rows: the planned kernel is not compiled in");  // tests/test_cuda_rows.py: never
}

std::vector<ConvFwdVariant> compiled_conv_rows() {
  std::vector<ConvFwdVariant> variants;
  for (const CompiledConvRows& c : menu()) variants.push_back(c.variant);
  return variants;
}

}  // namespace resnet_fused::cuda
