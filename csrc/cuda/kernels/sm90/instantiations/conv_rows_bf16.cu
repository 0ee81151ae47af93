#include "cuda/kernels/sm90/conv_rows_variants.cuh"

namespace resnet_fused::cuda {

ConvTable conv_rows_bf16() { return compile_all_conv_rows<Dtype::kBFloat16>(); }

}  // namespace resnet_fused::cuda
