// Chooses the kernel of a problem on a GPU. Pure: shapes and device numbers in, a plan out, so it can be printed and
// tested on any machine.
#pragma once
#include <optional>
#include <vector>

#include "cuda/plan/override.h"
#include "cuda/plan/planner.h"
#include "cuda/plan/types.h"

namespace resnet_fused::cuda {

// The fastest candidate by prediction, or the one that `override` names. `rejected`, unless null, receives all others
// and why each lost.
Plan make_plan(const Problem& problem, const Device& device, const Override& override = {},
               std::vector<Rejected>* rejected = nullptr);

// A planner's candidates with their costs, whether or not they fit the GPU: for predictions.
std::vector<Candidate> priced_candidates(const Planner& planner, const Problem& problem, const Model& model,
                                         const Override& override);

// The compiled kernel that a plan launches, with its finishing kernel if it launches one; empty: none of ours.
std::optional<KernelVariant> kernel_of(const Problem& problem, const Plan& plan);

const char* name_of(Engine engine);                    // "sm90:rows"
KernelFamily family_of(Engine engine, ConvMode mode);  // of an engine of ours

}  // namespace resnet_fused::cuda
