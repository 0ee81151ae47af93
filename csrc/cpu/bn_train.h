// BatchNorm in training: batch statistics and backward. Tensors are dense and have the same dtype and memory format.
// Results are bit-identical for any number of threads.
#pragma once
#include <tuple>

#include "common/problem.h"

namespace resnet_fused::cpu {

// Inputs of the backward pass. The gradient passes through the ReLU, if any, that follows bn(x) or produced out.
struct BnGradient {
  Tensor grad, x;
  BatchNorm bn;  // mean and var are present
  OptTensor out;
  bool relu;
  bool channels_last;
};

// Per-channel mean and biased variance, in float32 (float64 for float64 input); NaN for an empty batch.
std::tuple<Tensor, Tensor> batch_moments(const Tensor& x, bool channels_last);

// Per-channel sums of g and g * xhat. If `masked_grad` is given (q.out must be present), also stores g there.
std::tuple<Tensor, Tensor> gradient_sums(const BnGradient& q, const OptTensor& masked_grad = {});

// gamma / sqrt(var + eps) * (g - sum_g / count - xhat * sum_g_xhat / count); without sums, only gamma / sqrt(var + eps)
// * g.
void gradient_into(const Tensor& to, const BnGradient& q, const OptTensor& sum_g, const OptTensor& sum_g_xhat,
                   double count);

}  // namespace resnet_fused::cpu
