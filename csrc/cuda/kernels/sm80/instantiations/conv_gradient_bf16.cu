#include "cuda/kernels/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvTable conv_gradient_bf16() { return compile_conv_gradient<Dtype::kBFloat16>(); }

}  // namespace resnet_fused::cuda
