// Direct convolution for AVX-512: a block of output pixels by a block of output channels stays in registers over
// the whole reduction, then leaves finished (scale, shift, residual, ReLU, one rounding). Plain numbers and pointers:
// this header is what the instruction-set specific files share with the rest, and it includes no library.
#pragma once
#include <cstddef>
#include <cstdint>

namespace resnet_fused::cpu {

constexpr int kLanes = 16;  // fp32 accumulators in one register

// Throws: a thread's scratch memory of so many bytes could not be had. Compiled for every processor, unlike its
// callers.
[[noreturn]] void no_memory(size_t bytes);

struct DirectConv {
  const void* x;               // element strides below, any layout
  int64_t xn, xc, xh, xw;      // strides of x: image, channel, row, column
  const void* packed;          // direct_pack's layout
  const float *scale, *shift;  // [K rounded up to kLanes]
  const void* residual;        // (N, OH, OW, K) dense, or null; may be out itself
  void* out;                   // (N, OH, OW, K) dense; (N, PH, PW, K) with a pool
  int n, c, h, w, k, r, s, oh, ow;
  int stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  bool relu;
  // max_pool2d of the result, never leaving the cache between; pool_r == 0: none
  int pool_r, pool_s, pool_stride_h, pool_stride_w, pool_pad_h, pool_pad_w, ph, pw;
};

// How one convolution is cut into tasks; threads take ranges of tasks.
struct DirectTiling {
  int vectors;    // registers across channels in the main block: 2 (14 pixels) or 4 (7 pixels)
  int64_t units;  // output rows of an image, pooled rows with a pool, or 14-pixel pieces of a flattened 1x1
  int blocks;     // tasks that share the units of an image
  int k_groups;   // tasks that share the channels
  bool flat;      // 1x1, stride 1, NHWC: all pixels of all images are one row
  int64_t tasks;
};

namespace avx512 {

int64_t direct_packed_elements_fp32(int c, int k, int r, int s);
DirectTiling direct_tiling_fp32(const DirectConv& conv, int threads);
void direct_pack_fp32(float* packed, const float* weight, const int64_t strides[4], int c, int k, int r, int s,
                      int vectors);
void direct_run_fp32(const DirectConv& conv, const DirectTiling& tiling, int64_t begin, int64_t end);

int64_t direct_packed_elements_bf16(int c, int k, int r, int s);
DirectTiling direct_tiling_bf16(const DirectConv& conv, int threads);
void direct_pack_bf16(uint16_t* packed, const uint16_t* weight, const int64_t strides[4], int c, int k, int r, int s,
                      int vectors);
void direct_run_bf16(const DirectConv& conv, const DirectTiling& tiling, int64_t begin, int64_t end);

}  // namespace avx512
}  // namespace resnet_fused::cpu
