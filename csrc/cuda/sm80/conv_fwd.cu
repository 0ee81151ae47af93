#include "cuda/sm80/conv_fwd.h"

#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/sm80/conv_finish.h"
#include "cuda/sm80/conv_fwd_kernels.h"

namespace resnet_fused::cuda {

namespace {

const std::vector<CompiledConvFwd>& menu() {
  static const std::vector<CompiledConvFwd> all = [] {
    std::vector<CompiledConvFwd> kernels;
    for (const auto of_dtype : {&conv_fwd_f16, &conv_fwd_bf16, &conv_fwd_tf32, &conv_stats_f16, &conv_stats_bf16,
                                &conv_stats_tf32, &conv_gradient_f16, &conv_gradient_bf16, &conv_gradient_tf32})
      for (const CompiledConvFwd& c : of_dtype()) kernels.push_back(c);
    return kernels;
  }();
  return all;
}

}  // namespace

void launch_conv_fwd(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue) {
  const ConvShape& shape = params.main.shape;
  if (shape.n == 0 || shape.p == 0 || shape.q == 0 || shape.k == 0) return;
  for (const CompiledConvFwd& c : menu())
    if (c.variant == variant) {
      c.launch(params, queue);
      if (params.splits > 1) launch_conv_finish(params, variant, queue);
      return;
    }
  throw std::logic_error("conv_fwd: the planned kernel is not compiled in");  // tests/test_cuda_conv.py: never
}

std::vector<ConvFwdVariant> compiled_conv_fwd() {
  std::vector<ConvFwdVariant> variants;
  for (const CompiledConvFwd& c : menu()) variants.push_back(c.variant);
  return variants;
}

}  // namespace resnet_fused::cuda
