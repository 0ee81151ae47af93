#include "cpu/avx512/direct_kernel.h"

namespace resnet_fused::cpu::avx512 {

int64_t direct_packed_elements_bf16(int c, int k, int r, int s) {
  return static_cast<int64_t>(round_up(k, kLanes)) * r * row_values<Bf16>(c, s);
}

DirectTiling direct_tiling_bf16(const DirectConv& conv, int threads) { return tiling<Bf16>(conv, threads); }

void direct_pack_bf16(uint16_t* packed, const uint16_t* weight, const int64_t strides[4], int c, int k, int r, int s,
                      int vectors) {
  pack<Bf16>(packed, weight, strides, c, k, r, s, vectors);
}

void direct_run_bf16(const DirectConv& conv, const DirectTiling& tiling, int64_t begin, int64_t end) {
  DirectTask<Bf16> task(conv, tiling);
  for (int64_t i = begin; i < end; ++i) task.run(i);
}

}  // namespace resnet_fused::cpu::avx512
