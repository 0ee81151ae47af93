// The passes over activations around convolutions, on torch's tensors: allocate, launch.
#pragma once
#include <tuple>

#include "common/problem.h"
#include "cuda/bn/walk.h"
#include "cuda/operands.h"
#include "cuda/pool/pool.h"

namespace resnet_fused::cuda {

BnShape bn_shape_of(const Tensor& x, bool channels_last);

// out = act(bn(x) + shortcut), or act(bn(x) + shortcut_bn(shortcut)). x and out are dense in one layout, and may be one
// tensor; the shortcut, if any, is brought to it.
void add_act_into(const Tensor& out, const Tensor& x, const Vectors& bn, const OptTensor& shortcut,
                  const Vectors* shortcut_bn, bool relu, bool channels_last);

// act(bn(x) + residual), dense in the layout that is asked for.
Tensor normalise(const Tensor& x, const BatchNorm& bn, const OptTensor& residual, bool relu, bool channels_last);

// max_pool2d(relu(bn(x))), NHWC like x, which is dense. argmax, if given, is NHWC too, and gets the number that each
// value's element has in its window, which then has at most 255 of them.
Tensor relu_max_pool(const Tensor& x, const Vectors& bn, const Ints& kernel, const Ints& stride, const Ints& padding,
                     const OptTensor& argmax);
PoolShape pool_shape_of(const Tensor& x, IntView pooled, const Ints& kernel, const Ints& stride, const Ints& padding);

// Mean and biased variance of each channel of a dense tensor.
std::tuple<Tensor, Tensor> batch_moments(const Tensor& x, bool channels_last);

// One value a channel, in the dtype of sums: float32, or float64 of float64.
Tensor channel_sums(const Tensor& x, int64_t channels);

Tensor workspace_of(int64_t bytes, const Tensor& like);

}  // namespace resnet_fused::cuda
