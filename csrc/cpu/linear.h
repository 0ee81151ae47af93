// linear(mean(x, (2, 3)), weight, bias) for AVX2 and AVX-512: the layers after a ResNet's stages, for few images. The
// weight is read once, row by row, as it is: a packed copy or its digest would cost as much as the product. Plain
// numbers and pointers only, as in direct.h.
#pragma once
#include <cstdint>

namespace resnet_fused::cpu {

struct PooledLinear {
  const void* x;       // (N, H, W, C) dense
  const void* weight;  // (K, C)
  const void* bias;    // [K], or null
  float* mean;         // [N][mean_row], scratch
  void* out;           // (N, K) dense
  int64_t n, c, k, pixels;
  int64_t weight_row, mean_row;  // elements from one row to the next; mean_row: C rounded up to whole registers
};

// The kernels of one instruction set and one element type. First all tasks of mean, then all of multiply.
struct LinearKernels {
  int lanes;
  int channels;  // of one image, in a task of mean
  int rows;      // of the weight, in a task of multiply
  void (*mean)(const PooledLinear& linear, int64_t begin, int64_t end);
  void (*multiply)(const PooledLinear& linear, int64_t begin, int64_t end);
};

}  // namespace resnet_fused::cpu
