#include "cuda/kernels/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvFwdTable conv_stats_f16() { return compile_training<Dtype::kFloat16>(); }

}  // namespace resnet_fused::cuda
