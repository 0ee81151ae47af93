// A convolution on a GPU, for every op that runs one: inference, statistics and gradients.
#pragma once
#include <optional>

#include "common/problem.h"
#include "cuda/plan/plan.h"

namespace resnet_fused::cuda {

struct ConvCall {
  const Conv& conv;  // for gradient sums gradient_of(forward): the gradient as a convolution with the flipped filter
  Epilogue epilogue;
  const Conv* projection = nullptr;  // kProjection
  const Tensor* residual = nullptr;  // kAffine; kGradientSums: the grad addend
  bool relu = false;
  bool allow_tf32 = false;
  const Conv* forward = nullptr;  // kGradientSums; its x is the pre-BN output of conv.bn's convolution
};

struct ConvResult {
  Tensor out;  // kernels return NHWC, whatever the formats of their inputs
  // kMoments: mean and variance. kGradientSums: the sums of g and of g * xhat.
  OptTensor first, second;
};

// With the planned engine, on torch's current stream of x's device, which must be the current device.
ConvResult run_conv(const ConvCall& call);

}  // namespace resnet_fused::cuda
