// BatchNorm in training: the batch's own statistics, and the backward pass. Tensors are dense, of one dtype and one
// memory format. Results are the same bits for every number of threads.
#pragma once
#include <tuple>

#include "common/problem.h"

namespace resnet_fused::cpu {

// Where a gradient comes from: through the ReLU, if any, that followed bn(x) or made out.
struct BnGradient {
  Tensor grad, x;
  BatchNorm bn;  // mean and var are present
  OptTensor out;
  bool relu;
  bool channels_last;
};

// Of each channel, float32 or float64 of float64: mean and biased variance; NaN of nothing.
std::tuple<Tensor, Tensor> batch_moments(const Tensor& x, bool channels_last);

// The sums of g and of g * xhat. If `kept` is given (then q.out is too), g is stored there.
std::tuple<Tensor, Tensor> gradient_sums(const BnGradient& q, const OptTensor& kept = {});

// gamma / sqrt(var + eps) * (g - sum_g / count - xhat * sum_g_xhat / count); without sums, g's factor alone.
void gradient_into(const Tensor& to, const BnGradient& q, const OptTensor& sum_g, const OptTensor& sum_g_xhat,
                   double count);

}  // namespace resnet_fused::cpu
