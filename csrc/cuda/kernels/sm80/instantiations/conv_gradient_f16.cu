#include "cuda/kernels/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvTable conv_gradient_f16() { return compile_conv_gradient<Dtype::kFloat16>(); }

}  // namespace resnet_fused::cuda
