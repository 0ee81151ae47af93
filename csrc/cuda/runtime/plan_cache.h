// A cache of plans: evaluating the model for every candidate takes longer than a launch.
#pragma once
#include "cuda/plan/block_plan.h"
#include "cuda/plan/plan.h"

namespace resnet_fused::cuda {

// make_plan and make_block_plan without notes. Thread-safe. The caches hold a few hundred plans.
ConvPlan cached_plan(const ConvProblem& problem, const Device& device, const EngineChoice& choice);
BlockPlan cached_block_plan(const BlockProblem& problem, const Device& device, const EngineChoice& choice);

}  // namespace resnet_fused::cuda
