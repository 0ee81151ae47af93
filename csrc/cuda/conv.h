// Parameters of convolution kernels of all families. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/batch_norm.h"

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
  float* partials = nullptr;       // splits > 1: (slices, n * p * q, k); shares > 0: tiles
  int32_t splits = 1;              // sm80: parts of the main GEMM's depth; a projection is one slice more
  int32_t whole = 0, shares = 0;   // sm90: tiles from `whole` on have their steps cut into so many parts; 0: none has
  bool relu = false;
  float* statistics = nullptr;  // of modes that have them: (parts of the pixels, 3, k), bn/reduction.h's moments
  const void* raw = nullptr;    // of kGradientSums: (n, p, q, k), as main.bn, which read it; statistics has the sums
};

// kProjectionPrologue: the projection's input has the prologue, the main one's has not. kStatistics,
// kPrologueStatistics: the convolution and its bias alone, and the moments of what was stored. kGradientSums: out =
// conv(x) + residual is the gradient of relu(main.bn(raw)), and its sums are bn_backward_reduce's. Depths are whole in
// all three.
enum class ConvFwdMode : int32_t {
  kPlain,
  kPrologue,
  kProjection,
  kProjectionPrologue,
  kStatistics,
  kPrologueStatistics,
  kGradientSums
};

constexpr bool has_projection(ConvFwdMode mode) {
  return mode == ConvFwdMode::kProjection || mode == ConvFwdMode::kProjectionPrologue;
}

constexpr bool has_prologue(ConvFwdMode mode) {
  return mode == ConvFwdMode::kPrologue || mode == ConvFwdMode::kProjectionPrologue ||
         mode == ConvFwdMode::kPrologueStatistics;
}

constexpr bool has_statistics(ConvFwdMode mode) {
  return mode == ConvFwdMode::kStatistics || mode == ConvFwdMode::kPrologueStatistics;
}

// Whether each tile of pixels leaves a part of sums, which bn_finish puts together.
constexpr bool leaves_parts(ConvFwdMode mode) { return has_statistics(mode) || mode == ConvFwdMode::kGradientSums; }

// What distinguishes one compiled kernel of a family from another.
struct ConvFwdVariant {
  Dtype dtype;             // kFloat32 multiplies as tf32
  int32_t tile_m, tile_n;  // output pixels and channels of a block
  ConvFwdMode mode;

  bool operator==(const ConvFwdVariant& o) const {
    return dtype == o.dtype && tile_m == o.tile_m && tile_n == o.tile_n && mode == o.mode;
  }
};

}  // namespace resnet_fused::cuda
