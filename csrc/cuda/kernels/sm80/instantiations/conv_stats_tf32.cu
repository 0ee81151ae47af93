#include "cuda/kernels/sm80/conv_fwd_variants.cuh"

namespace resnet_fused::cuda {

ConvTable conv_stats_tf32() { return compile_conv_fwd<Dtype::kFloat32, Epilogue::kMoments>(); }

}  // namespace resnet_fused::cuda
