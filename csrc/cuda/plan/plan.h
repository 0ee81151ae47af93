// Chooses the kernel of a convolution on a GPU, and says why the others lost. Pure: shapes and device numbers in, a
// plan out. No torch and no CUDA, so it can be printed and tested on any machine.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/kernels/conv.h"
#include "cuda/plan/device.h"
#include "cuda/plan/override.h"

namespace resnet_fused::cuda {

// A convolution without its tensors: everything that the plan depends on.
struct ConvProblem {
  Dtype dtype = Dtype::kFloat32;
  ConvShape main;
  ConvShape projection;  // read if has_projection(mode)
  ConvFwdMode mode = ConvFwdMode::kPlain;
  int64_t groups = 1;
  bool residual = false;
  bool aligned = true;     // every address is a multiple of 16 bytes
  bool allow_tf32 = true;  // float32 may be multiplied as TF32
};

enum class ConvEngine : int32_t { kSm90Rows, kSm90, kSm80, kTorch };

struct ConvPlan {
  ConvEngine engine = ConvEngine::kTorch;
  ConvFwdVariant variant{};            // kTorch: only its mode is set, and none of the fields up to workspace
  int32_t splits = 1;                  // kSm80
  int32_t dp_tiles = 0, sk_units = 0;  // kSm90: stream-K, as in ConvFwdParams
  int32_t tiles = 0;                   // kSm80: blocks per slice
  int32_t smem = 0;                    // bytes per block
  int32_t part = 0;                    // with statistics: pixels per part that bn_finish combines
  int64_t workspace = 0;               // bytes of partial sums
  // Inputs and outputs, each counted once, without BatchNorm vectors and pixels that no tap reads. Kernels: plus
  // partial sums, written and read. kTorch: plus what the passes around its convolutions write and read.
  int64_t bytes = 0;
  double microseconds = 0;  // PREDICTED by model.cpp; 0: not predicted, no kernel can run
};

// Why the other candidates lost: "sm80 128x128: 4 blocks leave 104 of 108 SMs idle, ...", in the order they were tried.
using Notes = std::vector<std::string>;

// notes may be null; then nothing is formatted.
ConvPlan make_plan(const ConvProblem& problem, const Device& device, const EngineChoice& choice = {},
                   Notes* notes = nullptr);
std::string to_string(const ConvPlan& plan);  // one line

}  // namespace resnet_fused::cuda
