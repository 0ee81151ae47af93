#include "cuda/kernels/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvTable conv_gradient_tf32() { return compile_conv_gradient<Dtype::kFloat32>(); }

}  // namespace resnet_fused::cuda
