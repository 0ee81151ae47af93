// 3x3, stride 1 convolution by Winograd's algorithm (Lavin and Gray 2015, arXiv:1509.09308, section 4): for fp32
// tensors F(2x2, 3x3), where a 2x2 block of outputs takes 16 multiplications a channel pair instead of 36, without loss
// of accuracy; for bf16 tensors F(4x4, 3x3), 36 instead of 144, in fp32 as well.
#pragma once
#include <cstdint>

#include "cpu/direct.h"

namespace resnet_fused::cpu {

struct WinogradConv {
  const void* x;               // NHWC, dense
  const float* packed;         // what pack makes
  const float *scale, *shift;  // [K]
  const void* residual;        // (N, OH, OW, K) dense, or null; may be out itself
  void* out;                   // (N, OH, OW, K) dense
  int n, c, h, w, k, oh, ow, pad_h, pad_w;
  bool relu;
  // tiles of outputs, numbered through all images; a task takes `chunk` of them and a group of channels
  int tiles_h, tiles_w, chunk, k_groups;
  int64_t tiles, tasks;
};

struct WinogradKernels {
  int points;                                     // transformed values of a tile
  void (*tile)(WinogradConv& conv, int threads);  // fills tiles_h ... tasks
  // Blocks of 32 filters, begin ... end: into points * c * (k rounded up to 32) floats.
  void (*pack)(float* packed, const void* weight, const int64_t strides[4], int c, int k, int64_t begin, int64_t end);
  // False: a result was not finite.
  bool (*run)(const WinogradConv& conv, int64_t begin, int64_t end);
};

namespace avx512 {

const WinogradKernels& winograd_fp32();
const WinogradKernels& winograd_bf16();

}  // namespace avx512
}  // namespace resnet_fused::cpu
