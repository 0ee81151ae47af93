#include "cuda/kernels/sm80/conv_fwd.h"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/tables.h"

namespace resnet_fused::cuda {

namespace {

const ConvTable& table() {
  static const auto all =
      join_tables<ConvTable>(conv_fwd_f16, conv_fwd_bf16, conv_fwd_tf32, conv_stats_f16, conv_stats_bf16,
                             conv_stats_tf32, conv_gradient_f16, conv_gradient_bf16, conv_gradient_tf32);
  return all;
}

}  // namespace

void launch_conv_fwd(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue) {
  const ConvShape& shape = params.main.shape;
  if (shape.n == 0 || shape.p == 0 || shape.q == 0 || shape.k == 0) return;
  launch_from(table(), variant, params, queue, "conv_fwd");
  if (params.splits > 1) launch_conv_finish(params, variant, queue);
}

std::vector<ConvFwdVariant> compiled_conv_fwd() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
