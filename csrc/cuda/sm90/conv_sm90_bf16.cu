#include "cuda/sm90/conv_sm90_variants.cuh"

namespace resnet_fused::cuda {

std::vector<CompiledConvSm90> conv_sm90_bf16() { return compile_all_conv_sm90<Dtype::kBFloat16>(); }

}  // namespace resnet_fused::cuda
