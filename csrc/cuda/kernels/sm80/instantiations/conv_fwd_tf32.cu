#include "cuda/kernels/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvFwdTable conv_fwd_tf32() { return compile_inference<Dtype::kFloat32>(); }

}  // namespace resnet_fused::cuda
