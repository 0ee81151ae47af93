// The menu: every kernel that can be launched. launch_* picks the compiled variant, launches it on queue.stream, and
// returns without waiting; it allocates nothing.
#pragma once
#include <vector>

#include "cuda/bn/bn_add_act.h"
#include "cuda/queue.h"

namespace resnet_fused::cuda {

void launch_bn_add_act(const BnAddActParams& params, const Queue& queue);
std::vector<BnAddActVariant> compiled_bn_add_act();

}  // namespace resnet_fused::cuda
