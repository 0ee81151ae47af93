#include "cuda/sm90/block_fwd.h"

#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/sm90/block_fwd_kernels.h"

namespace resnet_fused::cuda {

namespace {

const std::vector<CompiledBlockFwd>& menu() {
  static const std::vector<CompiledBlockFwd> all = [] {
    std::vector<CompiledBlockFwd> kernels = block_fwd_f16();
    for (const CompiledBlockFwd& c : block_fwd_bf16()) kernels.push_back(c);
    return kernels;
  }();
  return all;
}

}  // namespace

void launch_block_fwd(const BlockFwdParams& params, const BlockFwdVariant& variant, const Queue& queue) {
  if (params.n == 0 || params.h == 0 || params.w == 0) return;
  for (const CompiledBlockFwd& c : menu())
    if (c.variant == variant) return c.launch(params, queue);
  throw std::logic_error("block_fwd: the planned kernel is not compiled in");  // tests/test_cuda_block_plan.py: never
}

std::vector<BlockFwdVariant> compiled_block_fwd() {
  std::vector<BlockFwdVariant> variants;
  for (const CompiledBlockFwd& c : menu()) variants.push_back(c.variant);
  return variants;
}

}  // namespace resnet_fused::cuda
