// One convolution on a GPU, for ops that run several.
#pragma once
#include "common/problem.h"
#include "cuda/plan/plan.h"
#include "cuda/runtime/queue.h"

namespace resnet_fused::cuda {

// act(bn(conv(x)) + residual) with the planned engine, on torch's current stream of x's device.
Tensor run_conv(const Conv& conv, const OptTensor& residual, bool relu, bool allow_tf32);

// Launches the planned kernel. The plan's engine must not be kTorch.
void launch_planned(const ConvFwdParams& params, const ConvPlan& plan, const Queue& queue);

}  // namespace resnet_fused::cuda
