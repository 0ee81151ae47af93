// Weight gradient of the Winograd convolution. The algorithm is linear in the filter g,
//     y = A^T ((G g G^T) . (B^T d B)) A,
// so the gradient is the transpose of each step in reverse order, with the same number of multiplications:
//     dg = G^T (sum over tiles of (A dy A^T) . (B^T d B)) G.
#pragma once
#include <cstdint>

namespace resnet_fused::cpu {

struct WinogradGradient {
  const void* x;               // NHWC, dense: the convolution's input
  const float *scale, *shift;  // [C]: if set, the input is relu(x * scale + shift); else null
  const void* grad;            // (N, OH, OW, K), dense
  int n, c, h, w, k, oh, ow, pad_h, pad_w;
  // Output tiles, numbered across all images and split into `parts` that are summed separately. A task takes one part
  // and a group of grad's channels, transforms `chunk` tiles at a time, and accumulates `run` of them in registers.
  int tiles_h, tiles_w, parts, groups, chunk, run;
  int64_t tiles, tasks;
  int64_t part_floats;  // floats of one part's sums
  float* sums;          // buffer for the sums of all parts
};

struct WinogradGradientKernels {
  void (*tile)(WinogradGradient& q, int threads);                      // fills tiles_h ... part_floats
  void (*sum)(const WinogradGradient& q, int64_t begin, int64_t end);  // tasks
  // After all tasks: writes channels [begin, end) of x into a weight with these strides. Returns false if a sum was not
  // finite.
  bool (*finish)(const WinogradGradient& q, void* weight, const int64_t strides[4], int64_t begin, int64_t end);
};

}  // namespace resnet_fused::cpu
