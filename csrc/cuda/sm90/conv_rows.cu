#include "cuda/sm90/conv_rows.h"

#include "cuda/kernels.h"
#include "cuda/sm90/conv_rows_kernels.h"

namespace resnet_fused::cuda {

namespace {

const ConvRowsMenu& menu() {
  static const auto all = menu_of<ConvRowsMenu>(conv_rows_f16, conv_rows_bf16);
  return all;
}

}  // namespace

void launch_conv_rows(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue) {
  if (conv_rows_tiles({variant.tile_m, variant.tile_n, 1}, params.main.shape) == 0) return;
  launch_from(menu(), variant, params, queue, "conv_rows");
}

std::vector<ConvFwdVariant> compiled_conv_rows() { return variants_of(menu()); }

}  // namespace resnet_fused::cuda
