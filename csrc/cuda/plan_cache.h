// A cache of plans: evaluating the model for every candidate takes longer than a launch.
#pragma once
#include "cuda/block_plan.h"
#include "cuda/plan.h"

namespace resnet_fused::cuda {

// make_plan and make_block_plan, but for the notes. Safe from any thread; some hundred plans are kept.
ConvPlan cached_plan(const ConvProblem& problem, const Device& device, const EngineChoice& choice);
BlockPlan cached_block_plan(const BlockProblem& problem, const Device& device, const EngineChoice& choice);

}  // namespace resnet_fused::cuda
