// Decides whether an identity BasicBlock runs as one launch on a GPU, and says why not. Pure, like plan.h.
#pragma once
#include "cuda/kernels/sm90/block_fwd.h"
#include "cuda/plan/plan.h"

namespace resnet_fused::cuda {

struct BlockProblem {
  Dtype dtype = Dtype::kFloat32;
  ConvShape conv;          // both convolutions: 3x3, stride 1, padding 1, c = k
  bool aligned = true;     // every address is a multiple of 16 bytes
  bool allow_tf32 = true;  // float32 may be multiplied as TF32
};

struct BlockPlan {
  bool one_launch = false;    // sm90/block_fwd; else two convolutions, each planned by make_plan()
  BlockFwdVariant variant{};  // this, tiling, tiles and smem: set for one launch only
  BlockFwdTiling tiling;
  int64_t tiles = 0;
  int32_t smem = 0;  // bytes per block
  // Bytes of input, output and weights, each counted once, and the time predicted by model.h. For two launches: the
  // sums of both, if they were compared.
  int64_t bytes = 0;
  double microseconds = 0;
};

// Chooses one launch if it is predicted to be faster than two, and is verified on that GPU or enabled by
// RESNET_FUSED_CUDA_ENGINE=sm90 or all. With sm90:block, chooses it wherever it can run. notes may be null.
BlockPlan make_block_plan(const BlockProblem& problem, const Device& device, const EngineChoice& choice = {},
                          Notes* notes = nullptr);
std::string to_string(const BlockPlan& plan);  // one line

}  // namespace resnet_fused::cuda
