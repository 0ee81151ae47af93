#include "cpu/avx512/bn_train_kernel.h"

namespace resnet_fused::cpu::avx512 {

const TrainKernels<float, float> train_kernels_fp32 = kernels_of<Fp32>();

}  // namespace resnet_fused::cpu::avx512
