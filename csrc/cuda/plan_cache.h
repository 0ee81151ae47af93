// Plans found again by what they were made from: a model of every candidate takes longer than a kernel's launch.
#pragma once
#include "cuda/plan.h"

namespace resnet_fused::cuda {

// make_plan, but for the notes. Safe from any thread; the latest 512 at least of one kind of GPU and choice are kept.
ConvPlan cached_plan(const ConvProblem& problem, const Device& device, const EngineChoice& choice);

}  // namespace resnet_fused::cuda
