// Weight gradient of the direct convolution: a product of matrices for each tap of the filter, summed over the output
// pixels p,
//     dw[k][tap][c] = sum over p of dy[p][k] * x[p at tap][c].
#pragma once
#include <cstdint>

namespace resnet_fused::cpu {

struct DirectGradient {
  const void* x;               // NHWC, dense: the convolution's input
  const float *scale, *shift;  // [C and 32 more]: if set, the input is relu(x * scale + shift); else null
  const void* grad;            // (N, OH, OW, K), dense
  int n, c, h, w, k, r, s, oh, ow;
  int stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;

  // Output rows are dealt into bands, bands into chunks, chunks into `parts` that are summed separately. A task takes
  // one part and a group of the rows of the products.
  bool rows_are_x;      // the products' rows are channels of x instead of grad's (1x1 kernels only)
  bool joins_taps;      // a kernel row's taps and channels are the products' columns: for images, of few channels
  int width;            // positions of an output row: its pixels, and padding where the kernel is wider than 1
  int band_rows;        // output rows
  int band_positions;   // rounded up to whole steps
  int plane_positions;  // that the taps of a band read
  int image_bands, bands, chunk_bands, chunks, parts, groups;
  int64_t tasks;
  int64_t part_floats;  // floats of one part's sums
  float* sums;          // buffer for the sums of all parts
};

struct DirectGradientKernels {
  // Fills rows_are_x ... part_floats. Returns false if the shape needs too much scratch.
  bool (*tile)(DirectGradient& q, int threads);
  void (*sum)(const DirectGradient& q, int64_t begin, int64_t end);  // tasks
  int64_t (*blocks)(const DirectGradient& q);
  // After all tasks: writes blocks [begin, end) of the products' rows into a weight with these strides. Returns false
  // if a sum was not finite.
  bool (*finish)(const DirectGradient& q, void* weight, const int64_t strides[4], int64_t begin, int64_t end);
};

}  // namespace resnet_fused::cpu
