#include "cuda/kernels/sm90/block_fwd.h"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/tables.h"

namespace resnet_fused::cuda {

namespace {

const BlockFwdTable& table() {
  static const auto all = join_tables<BlockFwdTable>(block_fwd_f16, block_fwd_bf16);
  return all;
}

}  // namespace

void launch_block_fwd(const BlockFwdParams& params, const BlockFwdVariant& variant, const Queue& queue) {
  if (params.n == 0 || params.h == 0 || params.w == 0) return;
  launch_from(table(), variant, params, queue, "block_fwd");
}

std::vector<BlockFwdVariant> compiled_block_fwd() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
