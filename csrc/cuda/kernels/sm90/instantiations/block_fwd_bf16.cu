#include "cuda/kernels/sm90/block_fwd_variants.cuh"

namespace resnet_fused::cuda {

BlockFwdTable block_fwd_bf16() { return compile_all_block_fwd<Dtype::kBFloat16>(); }

}  // namespace resnet_fused::cuda
