// Which kernel computes a convolution on a GPU, and why not the others. Pure: shapes and device numbers in, a plan
// out; no torch and no CUDA, so it prints and tests on any machine.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/sm80/conv_fwd.h"
#include "cuda/sm90/conv_rows.h"
#include "cuda/sm90/conv_sm90.h"

namespace resnet_fused::cuda {

struct Device {
  int32_t arch = 80;  // 10 * major + minor
  int32_t sm_count = 108;
  int32_t smem_per_block = 166912;  // bytes a block may ask for
  int32_t smem_per_sm = 167936;     // bytes that blocks of one SM share
};

// What is asked for, beyond ConvFwdParams: enough to choose without a tensor at hand.
struct ConvProblem {
  Dtype dtype = Dtype::kFloat32;
  ConvShape main;
  ConvShape projection;  // read if mode has one
  ConvFwdMode mode = ConvFwdMode::kPlain;
  int64_t groups = 1;
  bool residual = false;
  bool aligned = true;     // every address is a multiple of 16 bytes
  bool allow_tf32 = true;  // float32 may be multiplied as tf32
};

enum class ConvEngine : int32_t { kSm90Rows, kSm90, kSm80, kTorch };

struct ConvPlan {
  ConvEngine engine = ConvEngine::kTorch;
  ConvFwdVariant variant{};       // of a kernel, as what follows
  int32_t splits = 1;             // kSm80
  int32_t whole = 0, shares = 0;  // kSm90: tiles from `whole` on have their steps cut into so many parts
  int32_t tiles = 0;              // kSm80: blocks of one slice
  int32_t smem = 0;               // bytes a block
  int64_t workspace = 0;          // bytes of partial sums
  // Inputs and outputs once, without BatchNorm's vectors and pixels that no tap meets. Kernels: and the partial sums
  // written and read. kTorch: and what its further passes write and read.
  int64_t bytes = 0;
  bool statistics = false;  // kTorch: bn_stats follows, not bn_add_act
  double microseconds = 0;  // PREDICTION of model.cpp; 0: none, the kernel cannot run
};

// What a person asks for over the model's head: to compare, to measure, to run every kernel once on a new GPU.
struct EngineChoice {
  enum Kind : int32_t { kModel, kSm90, kSm80, kTorch };

  // kModel: what is predicted to be faster, sm90/ left out until a GPU has run it. kSm90, kSm80: a kernel of that
  // folder wherever one can run. kTorch: no kernel.
  Kind kind = kModel;
  bool rows = false;               // kSm90: conv_rows only
  int32_t tile_m = 0, tile_n = 0;  // kSm90, kSm80: this tile only; 0: any
  int32_t splits = 0;              // kSm90, kSm80: the depth in so many parts, or as many as there are steps; 0: any
  bool block = false;              // kSm90: a BasicBlock in one launch wherever it can be; convolutions in any tile
};

// RESNET_FUSED_CUDA_ENGINE: torch, sm80, sm80:64x64, sm80:64x64:4, sm90, sm90:256x64, sm90:256x64:4, sm90:rows,
// sm90:rows:4x56, sm90:block; null or empty: kModel. Throws a sentence at any other.
EngineChoice engine_choice(const char* text);

// Why the candidates that lost did: "sm80 128x128: 4 blocks leave 104 of 108 SMs idle, ...", in the order tried.
using Notes = std::vector<std::string>;

// notes may be null: nothing is formatted then.
ConvPlan make_plan(const ConvProblem& problem, const Device& device, const EngineChoice& choice = {},
                   Notes* notes = nullptr);
std::string to_string(const ConvPlan& plan);  // one line

}  // namespace resnet_fused::cuda
