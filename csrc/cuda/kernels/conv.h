// The convolution kernels of all families: their parameters, and their table. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/device/types.h"

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
  float* statistics = nullptr;   // leaves_parts(): (parts of the pixels, 3 or 2, k), as in bn/reduction.h
  const void* pre_bn = nullptr;  // kGradientSums: (n, p, q, k), the pre-BN input of main.bn
};

// What a convolution does as it reads its input. With a projection, the prologue is the projection's: the main
// convolution then has none.
enum class Prologue : int32_t {
  kNone,
  kBnRelu,  // reads relu(pre(x))
};

// What it does as it writes its output y.
enum class Epilogue : int32_t {
  kAffine,        // act(bn(y) + residual)
  kProjection,    // act(bn(y) + projection.bn(conv1x1(projection.x)))
  kMoments,       // y + bias, rounded, and the moments of the stored values
  kGradientSums,  // y + residual, the gradient of relu(bn(pre_bn)), and the sums of bn_backward_reduce
};

struct ConvMode {
  Prologue prologue = Prologue::kNone;
  Epilogue epilogue = Epilogue::kAffine;

  constexpr bool operator==(const ConvMode& o) const { return prologue == o.prologue && epilogue == o.epilogue; }
};

constexpr bool has_prologue(ConvMode m) { return m.prologue != Prologue::kNone; }
constexpr bool has_projection(ConvMode m) { return m.epilogue == Epilogue::kProjection; }
constexpr bool has_moments(ConvMode m) { return m.epilogue == Epilogue::kMoments; }
constexpr bool has_gradient_sums(ConvMode m) { return m.epilogue == Epilogue::kGradientSums; }

// Whether each pixel tile stores partial moments or sums, which bn_finish combines. Then neither split-K nor stream-K
// is used: both need complete sums.
constexpr bool leaves_parts(ConvMode m) { return has_moments(m) || has_gradient_sums(m); }

// Identifies a compiled kernel within its family.
struct ConvFwdVariant {
  Dtype dtype;             // kFloat32 is multiplied as TF32
  int32_t tile_m, tile_n;  // output pixels and channels; conv_rows: rows and columns of pixels
  ConvMode mode;

  constexpr bool operator==(const ConvFwdVariant& o) const {
    return dtype == o.dtype && tile_m == o.tile_m && tile_n == o.tile_n && mode == o.mode;
  }
};

// The table of convolution kernels. A line X(engine, kernel) declares Engine::engine, launch_<kernel>,
// compiled_<kernel> and <kernel>_planner, and adds them to the plan (plan/plan.cpp), the ops (ops/conv.cpp) and the
// emulator's bindings. In order of preference: of two equal predicted times, the plan takes the first.
#define CONV_KERNELS(X)                          \
  X(kSm90Rows, conv_rows) /* sm90/conv_rows.h */ \
  X(kSm90, conv_sm90)     /* sm90/conv_sm90.h */ \
  X(kSm80, conv_fwd)      /* sm80/conv_fwd.h */

}  // namespace resnet_fused::cuda
