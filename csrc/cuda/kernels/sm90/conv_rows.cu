#include "cuda/kernels/sm90/conv_rows.h"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/tables.h"

namespace resnet_fused::cuda {

namespace {

const ConvTable& table() {
  static const auto all = join_tables<ConvTable>(conv_rows_f16, conv_rows_bf16);
  return all;
}

}  // namespace

void launch_conv_rows(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue) {
  if (conv_rows_tiles({variant.tile_m, variant.tile_n, 1}, params.main.shape) == 0) return;
  launch_from(table(), variant, params, queue, "conv_rows");
}

std::vector<ConvFwdVariant> compiled_conv_rows() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
