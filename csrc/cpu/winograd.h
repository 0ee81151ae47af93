// 3x3, stride 1 convolution by Winograd's F(2x2, 3x3) (Lavin and Gray 2015, arXiv:1509.09308, section 4.1): a 2x2
// block of outputs takes 16 multiplications a channel pair instead of 36, in fp32 without loss of accuracy.
#pragma once
#include <cstdint>

#include "cpu/direct.h"

namespace resnet_fused::cpu {

struct WinogradConv {
  const float* x;              // NHWC, dense
  const float* packed;         // winograd_pack's layout
  const float *scale, *shift;  // [K]
  const float* residual;       // (N, OH, OW, K) dense, or null; may be out itself
  float* out;                  // (N, OH, OW, K) dense
  int n, c, h, w, k, oh, ow, pad_h, pad_w;
  bool relu;
  // tiles of 2x2 outputs, numbered through all images; a task takes `chunk` of them and a group of channels
  int tiles_h, tiles_w, chunk, k_groups;
  int64_t tiles, tasks;
};

namespace avx512 {

void winograd_tile(WinogradConv& conv, int threads);  // fills tiles_h ... tasks
// Into 16 * c * (k rounded up to 32) floats, block by block
int64_t winograd_pack_blocks(int k);
void winograd_pack(float* packed, const float* weight, const int64_t strides[4], int c, int k, int64_t begin,
                   int64_t end);
// False: a result was not finite.
bool winograd_run(const WinogradConv& conv, int64_t begin, int64_t end);

}  // namespace avx512
}  // namespace resnet_fused::cpu
