// Plans as text and as fields. All sentences about plans are made here. Pure.
#pragma once
#include <string>
#include <vector>

#include "common/fields.h"
#include "cuda/plan/plan.h"

namespace resnet_fused::cuda {

// One line for the plan, and one for each rejected candidate: "sm80 128x128: 4 blocks leave 104 of 108 SMs idle, ...".
std::string to_text(const Problem& problem, const Device& device, const Plan& plan,
                    const std::vector<Rejected>& rejected);

// kernel, engine, name, dtype, mode, tile_m, tile_n, tiles, smem, splits, dp_tiles, sk_units, workspace, bytes,
// microseconds; and `rejected`: a list with the same fields, why (unsupported, missing, shared memory, wrong,
// unverified, override, other tile, slower) and reason. Fields that a candidate has not are left out.
Fields to_fields(const Problem& problem, const Device& device, const Plan& plan, const std::vector<Rejected>& rejected);

}  // namespace resnet_fused::cuda
