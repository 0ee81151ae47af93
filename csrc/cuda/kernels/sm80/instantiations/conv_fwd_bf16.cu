#include "cuda/kernels/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvFwdTable conv_fwd_bf16() { return compile_inference<Dtype::kBFloat16>(); }

}  // namespace resnet_fused::cuda
