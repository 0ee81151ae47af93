// Which kernel computes a convolution on a GPU, and why not the others. Pure: shapes and device numbers in, a plan
// out; no torch and no CUDA, so it prints and tests on any machine.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/conv.h"
#include "cuda/device.h"
#include "cuda/engine_choice.h"

namespace resnet_fused::cuda {

// A convolution without its tensors: all that the plan depends on.
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
  ConvFwdVariant variant{};       // of a kernel, as what follows; kTorch: its mode alone
  int32_t splits = 1;             // kSm80
  int32_t whole = 0, shares = 0;  // kSm90: tiles from `whole` on have their steps cut into so many parts
  int32_t tiles = 0;              // kSm80: blocks of one slice
  int32_t smem = 0;               // bytes a block
  int32_t part = 0;               // with statistics: pixels of each part that the kernel leaves to bn_finish
  int64_t workspace = 0;          // bytes of partial sums
  // Inputs and outputs once, without BatchNorm's vectors and pixels that no tap meets. Kernels: and the partial sums
  // written and read. kTorch: and what its further passes write and read.
  int64_t bytes = 0;
  double microseconds = 0;  // PREDICTION of model.cpp; 0: none, the kernel cannot run
};

// Why the other candidates lost: "sm80 128x128: 4 blocks leave 104 of 108 SMs idle, ...", in the order tried.
using Notes = std::vector<std::string>;

// notes may be null: nothing is formatted then.
ConvPlan make_plan(const ConvProblem& problem, const Device& device, const EngineChoice& choice = {},
                   Notes* notes = nullptr);
std::string to_string(const ConvPlan& plan);  // one line

}  // namespace resnet_fused::cuda
