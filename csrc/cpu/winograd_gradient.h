// The weight's gradient of the same convolution. Winograd's algorithm is linear in the filter g,
//     y = A^T ((G g G^T) . (B^T d B)) A,
// so its gradient is each step transposed, in reverse, with as few multiplications:
//     dg = G^T (sum over tiles of (A dy A^T) . (B^T d B)) G.
#pragma once
#include <cstdint>

namespace resnet_fused::cpu {

struct WinogradGradient {
  const void* x;               // NHWC, dense: what was convolved, or
  const float *scale, *shift;  // [C] with these, relu(x * scale + shift) was; else null
  const void* grad;            // (N, OH, OW, K), dense
  int n, c, h, w, k, oh, ow, pad_h, pad_w;
  // Tiles of outputs, numbered through all images, in `parts` that are summed by themselves. A task takes one part
  // and a group of grad's channels, transforms `chunk` tiles at a time, and adds up `run` of them in registers.
  int tiles_h, tiles_w, parts, groups, chunk, run;
  int64_t tiles, tasks;
  int64_t part_floats;  // sums of a part
  float* sums;          // memory for those of all parts
};

struct WinogradGradientKernels {
  void (*tile)(WinogradGradient& q, int threads);                      // fills tiles_h ... part_floats
  void (*sum)(const WinogradGradient& q, int64_t begin, int64_t end);  // tasks
  // When all are done, channels begin ... end of x: into a weight of these strides. False: a sum was not finite.
  bool (*finish)(const WinogradGradient& q, void* weight, const int64_t strides[4], int64_t begin, int64_t end);
};

namespace avx512 {

const WinogradGradientKernels& winograd_gradient_fp32();
const WinogradGradientKernels& winograd_gradient_bf16();

}  // namespace avx512
}  // namespace resnet_fused::cpu
