#include "cuda/kernels/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvTable conv_stats_bf16() { return compile_conv_fwd<Dtype::kBFloat16, Epilogue::kMoments>(); }

}  // namespace resnet_fused::cuda
