// Parameters of the convolution kernels of all families. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/device/batch_norm.h"
#include "cuda/device/conv_shape.h"

namespace resnet_fused::cuda {

// The operands of a convolution's implicit GEMM: the input, gathered tap by tap, and the filter.
struct ConvOperands {
  const void* x = nullptr;
  const void* weight = nullptr;
  ConvShape shape;
  BatchNormVectors pre;  // prologue: the convolution reads relu(pre(x)); padding stays zero
  BatchNormVectors bn;   // epilogue, after the convolution
};

// out = act(bn(conv(x)) + residual), or act(bn(conv(x)) + projection.bn(conv1x1(projection.x))).
// Addresses are multiples of 16 bytes, c and k multiples of 8.
struct ConvFwdParams {
  ConvOperands main;
  ConvOperands projection;             // same output n, p, q and k as main
  const void* residual = nullptr;      // null: none
  void* out = nullptr;                 // (n, p, q, k)
  float* partials = nullptr;           // splits > 1: (slices, n * p * q, k); sk_units > 0: partial tiles
  int32_t splits = 1;                  // sm80, split-K: slices of the main GEMM; a projection adds one slice
  int32_t dp_tiles = 0, sk_units = 0;  // sm90, stream-K: tiles from dp_tiles on are cut into sk_units; 0: none
  bool relu = false;
  float* statistics = nullptr;   // has_statistics(): (parts of the pixels, 3, k), the moments of bn/reduction.h
  const void* pre_bn = nullptr;  // kGradientSums: (n, p, q, k), pre-BN input of main.bn; `statistics` gets the sums
};

// kProjectionPrologue: only the projection's input has the prologue. kStatistics, kPrologueStatistics: out = conv(x) +
// bias, without BatchNorm, and the moments of the stored values. kGradientSums: out = conv(x) + residual, the gradient
// of relu(main.bn(pre_bn)), and the sums of bn_backward_reduce. The last three use neither split-K nor stream-K.
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

// Whether each pixel tile stores partial moments or sums, which bn_finish combines.
constexpr bool leaves_parts(ConvFwdMode mode) { return has_statistics(mode) || mode == ConvFwdMode::kGradientSums; }

// Identifies a compiled kernel within its family.
struct ConvFwdVariant {
  Dtype dtype;             // kFloat32 is multiplied as TF32
  int32_t tile_m, tile_n;  // output pixels and channels; conv_rows: rows and columns of pixels
  ConvFwdMode mode;

  bool operator==(const ConvFwdVariant& o) const {
    return dtype == o.dtype && tile_m == o.tile_m && tile_n == o.tile_n && mode == o.mode;
  }
};

}  // namespace resnet_fused::cuda
