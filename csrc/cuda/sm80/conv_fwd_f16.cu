#include "cuda/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvFwdMenu conv_fwd_f16() { return compile_inference<Dtype::kFloat16>(); }

}  // namespace resnet_fused::cuda
