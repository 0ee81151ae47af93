#include "cuda/kernels/sm90/conv_sm90_variants.cuh"

namespace resnet_fused::cuda {

ConvSm90Table conv_sm90_stats_f16() { return compile_sm90_training<Dtype::kFloat16>(); }

}  // namespace resnet_fused::cuda
