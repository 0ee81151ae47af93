// 3x3, stride 1 convolution by Winograd's algorithm (Lavin and Gray 2015, arXiv:1509.09308, section 4). fp32 tensors
// use F(2x2, 3x3): a 2x2 block of outputs takes 16 multiplications per channel pair instead of 36, without loss of
// accuracy. bf16 tensors use F(4x4, 3x3), 36 instead of 144, also computed in fp32.
#pragma once
#include <cstdint>

namespace resnet_fused::cpu {

struct WinogradConv {
  const void* x;               // NHWC, dense
  const float* packed;         // output of pack
  const float *scale, *shift;  // [K]
  const void* residual;        // (N, OH, OW, K) dense, or null; may alias out
  void* out;                   // (N, OH, OW, K) dense
  int n, c, h, w, k, oh, ow, pad_h, pad_w;
  bool relu;
  // output tiles, numbered across all images; a task takes `chunk` of them and a group of channels
  int tiles_h, tiles_w, chunk, k_groups;
  int64_t tiles, tasks;
};

struct WinogradKernels {
  int points;                                     // transformed values per tile
  int block;                                      // filters per block
  void (*tile)(WinogradConv& conv, int threads);  // fills tiles_h ... tasks
  // Packs blocks of filters [begin, end) into points * c * (k rounded up to whole blocks) floats.
  void (*pack)(float* packed, const void* weight, const int64_t strides[4], int c, int k, int64_t begin, int64_t end);
  // Returns false if a result was not finite.
  bool (*run)(const WinogradConv& conv, int64_t begin, int64_t end);
};

}  // namespace resnet_fused::cpu
