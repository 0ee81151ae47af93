#include "cuda/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvFwdMenu conv_gradient_bf16() { return compile_gradient<Dtype::kBFloat16>(); }

}  // namespace resnet_fused::cuda
