#include "cuda/kernels/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvFwdTable conv_gradient_f16() { return compile_gradient<Dtype::kFloat16>(); }

}  // namespace resnet_fused::cuda
