// Direct convolution for AVX2 and AVX-512. A block of output pixels by output channels stays in registers for the whole
// reduction; the epilogue applies scale, shift, residual and ReLU and rounds once. Plain numbers and pointers only: the
// ISA-specific files share this header with the rest, so it includes no library.
#pragma once
#include <cstddef>
#include <cstdint>

namespace resnet_fused::cpu {

// Throws: a thread's scratch buffer of this many bytes could not be allocated. Compiled for any processor, unlike
// its callers.
[[noreturn]] void no_memory(size_t bytes);
// Of a core's second-level cache; 1 MiB if unknown.
int64_t l2_bytes();

struct DirectConv {
  const void* x;           // element strides below, any layout
  int64_t xn, xc, xh, xw;  // strides of x: image, channel, row, column
  const void* packed;      // direct_pack's layout; null if tasks pack
  const void* weight;      // (K, C, R, S) of these element strides
  int64_t weight_strides[4];
  const float *scale, *shift;               // [K rounded up to whole registers]
  const void* residual;                     // (N, OH, OW, K) dense, or null; may alias out
  void* out;                                // (N, OH, OW, K) dense; (N, PH, PW, K) with a pool
  int n, c, h, w, k, r, s, oh, ow, groups;  // more than 1 group: grouped.h
  int stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  bool relu;
  // fused max_pool2d of the result, through cache; pool_r == 0: none
  int pool_r, pool_s, pool_stride_h, pool_stride_w, pool_pad_h, pool_pad_w, ph, pw;
};

// How a convolution is split into tasks; each thread takes a range of tasks.
struct DirectTiling {
  int vectors;    // registers across channels in the main block: 2, or more where rows are short
  int64_t units;  // output rows of an image, pooled rows with a pool, or pieces of a flattened 1x1
  int blocks;     // tasks that an image's units are split into
  int k_groups;   // tasks that the output channels are split into
  bool flat;      // 1x1 without padding, channels innermost: the output pixels of all images form one row
  bool packs;     // each task packs its own weights, which no other task reads
  int64_t tasks;
};

// The kernels of one instruction set and one element type.
struct DirectKernels {
  int lanes;  // scale and shift are read in whole registers of this many floats
  int64_t (*packed_bytes)(int c, int k, int r, int s);
  DirectTiling (*tile)(const DirectConv& conv, int threads, bool may_pack);
  // Packs output channels [k0, k1) of a weight of any strides into a buffer that begins with channel `first`; all are
  // multiples of vectors * lanes, or k1 is k. Returns false if a value is not finite.
  bool (*pack)(void* packed, const void* weight, const int64_t strides[4], int c, int k, int r, int s, int vectors,
               int k0, int k1, int first);
  // Runs tasks; returns false if one packed a value that is not finite.
  bool (*run)(const DirectConv& conv, const DirectTiling& tiling, int64_t begin, int64_t end);
  bool depth_first;  // whether a program should run them image by image through several layers (deferred.h)
};

}  // namespace resnet_fused::cpu
