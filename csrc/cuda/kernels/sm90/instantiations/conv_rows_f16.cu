#include "cuda/kernels/sm90/conv_rows_variants.cuh"

namespace resnet_fused::cuda {

ConvTable conv_rows_f16() { return compile_all_conv_rows<Dtype::kFloat16>(); }

}  // namespace resnet_fused::cuda
