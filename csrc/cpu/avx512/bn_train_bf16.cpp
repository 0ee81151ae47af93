#include "cpu/avx512/bn_train_kernel.h"

namespace resnet_fused::cpu::avx512 {

const TrainKernels<BFloat16, float> train_kernels_bf16 = kernels_of<Bf16>();

}  // namespace resnet_fused::cpu::avx512
