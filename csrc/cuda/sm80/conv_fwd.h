// sm80/conv_fwd on the host: what a launch asks for, which kernels are compiled, how the grid covers the output.
// Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/bn/batch_norm.h"
#include "cuda/dtype.h"

namespace resnet_fused::cuda {

// One convolution's geometry. Activations are NHWC, weights KRSC, all dense.
struct ConvShape {
  int32_t n = 0, h = 0, w = 0, c = 0;  // input
  int32_t k = 0, r = 1, s = 1;         // weight; r, s <= kConvFwdMostTaps
  int32_t p = 0, q = 0;                // output height and width
  int32_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dil_h = 1, dil_w = 1;
};

constexpr int32_t kConvFwdMostTaps = 16;  // a bit each for rows and columns of the filter in one register

// A GEMM operand pair: pixels of an image gathered by a filter's taps, and the filter.
struct ConvOperands {
  const void* x = nullptr;
  const void* weight = nullptr;
  ConvShape shape;
  BatchNormVectors pre;  // relu(pre(x)) enters the convolution, if the variant has a prologue; padding stays zero
  BatchNormVectors bn;   // follows the convolution
};

// out = act(bn(conv(x)) + residual), or act(bn(conv(x)) + projection.bn(conv1x1(projection.x))).
// Every address is a multiple of 16 bytes, every c and k a multiple of 8.
struct ConvFwdParams {
  ConvOperands main;
  ConvOperands projection;         // its output has main's n, p, q and k
  const void* residual = nullptr;  // null: none
  void* out = nullptr;             // (n, p, q, k)
  float* partials = nullptr;       // splits > 1: (slices, n * p * q, k)
  int32_t splits = 1;              // parts of the main GEMM's depth; a projection is one slice more
  bool relu = false;
};

enum class ConvFwdMode : int32_t { kPlain, kPrologue, kProjection, kProjectionPrologue };

// What distinguishes one compiled kernel from another.
struct ConvFwdVariant {
  Dtype dtype;             // kFloat32 multiplies as tf32
  int32_t tile_m, tile_n;  // output pixels and channels of a block
  ConvFwdMode mode;        // kProjectionPrologue: the projection's input has the prologue, the main one's has not

  bool operator==(const ConvFwdVariant& o) const {
    return dtype == o.dtype && tile_m == o.tile_m && tile_n == o.tile_n && mode == o.mode;
  }
};

// The tiles that are compiled, of every dtype and mode.
struct ConvFwdTile {
  int32_t m, n, stages;
  int32_t threads;
};
constexpr ConvFwdTile kConvFwdTiles[] = {{128, 128, 3, 256}, {128, 64, 3, 128}, {64, 64, 4, 128}};

constexpr int32_t kConvFwdRowBytes = 128;  // of a stage, an operand row: the depth of one step

constexpr int32_t conv_fwd_depth(Dtype dtype) { return kConvFwdRowBytes / size_of(dtype); }

constexpr bool has_projection(ConvFwdMode mode) {
  return mode == ConvFwdMode::kProjection || mode == ConvFwdMode::kProjectionPrologue;
}

// Slices of the workspace when splits > 1.
constexpr int32_t conv_fwd_slices(ConvFwdMode mode, int32_t splits) { return splits + has_projection(mode); }

constexpr bool has_prologue(ConvFwdMode mode) {
  return mode == ConvFwdMode::kPrologue || mode == ConvFwdMode::kProjectionPrologue;
}

// Dynamic shared memory: the ring, which the epilogue uses again, and tables of scale and shift: of the tile's output
// channels, of the projection's, and of every input channel that a prologue prepares.
constexpr int32_t conv_fwd_smem(const ConvFwdTile& tile, ConvFwdMode mode, int32_t prologue_channels) {
  const int32_t table = 2 * 4;  // bytes a channel
  return tile.stages * (tile.m + tile.n) * kConvFwdRowBytes + tile.n * table * (1 + has_projection(mode)) +
         (has_prologue(mode) ? prologue_channels * table : 0);
}

}  // namespace resnet_fused::cuda
