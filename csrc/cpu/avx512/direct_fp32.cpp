#include "cpu/avx512/direct_kernel.h"

namespace resnet_fused::cpu::avx512 {

int64_t direct_packed_elements_fp32(int c, int k, int r, int s) {
  return static_cast<int64_t>(round_up(k, kLanes)) * r * row_values<Fp32>(c, s);
}

DirectTiling direct_tiling_fp32(const DirectConv& conv, int threads) { return tiling<Fp32>(conv, threads); }

void direct_pack_fp32(float* packed, const float* weight, const int64_t strides[4], int c, int k, int r, int s,
                      int vectors) {
  pack<Fp32>(packed, weight, strides, c, k, r, s, vectors);
}

void direct_run_fp32(const DirectConv& conv, const DirectTiling& tiling, int64_t begin, int64_t end) {
  DirectTask<Fp32> task(conv, tiling);
  for (int64_t i = begin; i < end; ++i) task.run(i);
}

}  // namespace resnet_fused::cpu::avx512
