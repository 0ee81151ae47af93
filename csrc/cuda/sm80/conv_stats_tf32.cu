#include "cuda/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvFwdMenu conv_stats_tf32() { return compile_training<Dtype::kFloat32>(); }

}  // namespace resnet_fused::cuda
