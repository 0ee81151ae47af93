// A cache of plans: evaluating the cost model for every candidate takes longer than a launch.
#pragma once
#include "cuda/plan/plan.h"

namespace resnet_fused::cuda {

// make_plan. Thread-safe. Holds a few hundred plans.
Plan cached_plan(const Problem& problem, const Device& device, const Override& override);

}  // namespace resnet_fused::cuda
