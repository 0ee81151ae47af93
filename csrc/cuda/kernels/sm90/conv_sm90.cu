#include "cuda/kernels/sm90/conv_sm90.h"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/tables.h"

namespace resnet_fused::cuda {

namespace {

const ConvTable& table() {
  static const auto all =
      join_tables<ConvTable>(conv_sm90_f16, conv_sm90_bf16, conv_sm90_stats_f16, conv_sm90_stats_bf16);
  return all;
}

}  // namespace

void launch_conv_sm90(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue) {
  if (conv_sm90_tiles({variant.tile_m, variant.tile_n, 0}, params.main.shape) == 0) return;
  launch_from(table(), variant, params, queue, "conv_sm90");
  if (params.sk_units) launch_conv_sm90_finish(params, variant, queue);
}

std::vector<ConvFwdVariant> compiled_conv_sm90() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
