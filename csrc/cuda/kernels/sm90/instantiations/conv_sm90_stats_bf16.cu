#include "cuda/kernels/sm90/conv_sm90_variants.cuh"

namespace resnet_fused::cuda {

ConvTable conv_sm90_stats_bf16() { return compile_conv_sm90<Dtype::kBFloat16, Epilogue::kMoments>(); }

}  // namespace resnet_fused::cuda
