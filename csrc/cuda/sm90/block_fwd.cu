#include "cuda/sm90/block_fwd.h"

#include "cuda/kernels.h"
#include "cuda/sm90/block_fwd_kernels.h"

namespace resnet_fused::cuda {

namespace {

const BlockFwdMenu& menu() {
  static const auto all = menu_of<BlockFwdMenu>(block_fwd_f16, block_fwd_bf16);
  return all;
}

}  // namespace

void launch_block_fwd(const BlockFwdParams& params, const BlockFwdVariant& variant, const Queue& queue) {
  if (params.n == 0 || params.h == 0 || params.w == 0) return;
  launch_from(menu(), variant, params, queue, "block_fwd");
}

std::vector<BlockFwdVariant> compiled_block_fwd() { return variants_of(menu()); }

}  // namespace resnet_fused::cuda
