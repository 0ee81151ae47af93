#include "cuda/kernels/sm90/block_fwd_variants.cuh"

namespace resnet_fused::cuda {

BlockFwdTable block_fwd_f16() { return compile_all_block_fwd<Dtype::kFloat16>(); }

}  // namespace resnet_fused::cuda
