// Whether an identity BasicBlock runs as one launch on a GPU, and why not. Pure, like plan.h.
#pragma once
#include "cuda/plan.h"
#include "cuda/sm90/block_fwd.h"

namespace resnet_fused::cuda {

struct BlockProblem {
  Dtype dtype = Dtype::kFloat32;
  ConvShape conv;          // of either convolution: 3x3, stride 1, padding 1, c = k
  bool aligned = true;     // every address is a multiple of 16 bytes
  bool allow_tf32 = true;  // float32 may be multiplied as tf32
};

struct BlockPlan {
  bool one_launch = false;    // sm90/block_fwd; else two convolutions, each as make_plan() has it
  BlockFwdVariant variant{};  // of one launch, as what follows
  BlockFwdTiling tiling;
  int64_t tiles = 0;
  int32_t smem = 0;  // bytes a block
  // Bytes of input, output and weights once, and the time predicted by the model in block_plan.cpp. For two launches:
  // their sums, if they were compared.
  int64_t bytes = 0;
  double microseconds = 0;
};

// One launch runs where the model expects it to be faster than two, if it is verified on that GPU or
// RESNET_FUSED_CUDA_ENGINE is sm90; or wherever it can where that is sm90:block. notes may be null.
BlockPlan make_block_plan(const BlockProblem& problem, const Device& device, const EngineChoice& choice = {},
                          Notes* notes = nullptr);
std::string to_string(const BlockPlan& plan);  // one line

}  // namespace resnet_fused::cuda
