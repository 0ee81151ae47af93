// Passes over the activations around convolutions, on torch's tensors: allocate and launch.
#pragma once
#include <tuple>

#include "common/problem.h"
#include "cuda/kernels/bn/bn_gradient.h"
#include "cuda/kernels/pool/pool.h"
#include "cuda/ops/operands.h"

namespace resnet_fused::cuda {

BnShape bn_shape_of(const Tensor& x, bool channels_last);

// out = act(bn(x) + shortcut), or act(bn(x) + shortcut_bn(shortcut)). x and out are dense in the same layout and may be
// the same tensor; the shortcut, if any, is converted to that layout.
void add_act_into(const Tensor& out, const Tensor& x, const Vectors& bn, const OptTensor& shortcut,
                  const Vectors* shortcut_bn, bool relu, bool channels_last);

// act(bn(x) + residual), dense in the requested layout.
Tensor normalise(const Tensor& x, const BatchNorm& bn, const OptTensor& residual, bool relu, bool channels_last);

// max_pool2d(relu(bn(x))) of a dense NHWC tensor, as NHWC. argmax, if given, is NHWC too and receives the position of
// each maximum in its window, which may then have at most 255 elements.
Tensor relu_max_pool(const Tensor& x, const Vectors& bn, const MaxPool& pool, const OptTensor& argmax);
PoolShape pool_shape_of(const Tensor& x, IntView pooled, const MaxPool& pool);

// Mean and biased variance of each channel of a dense tensor.
std::tuple<Tensor, Tensor> batch_moments(const Tensor& x, bool channels_last);

// The tensors of a gradient in x's memory format, and the vectors of their BatchNorm.
struct Gradient {
  Tensor grad, x;
  OptTensor out;
  Vectors bn;
  bool relu, channels_last;

  Gradient(const Tensor& from, const Tensor& x, const BatchNorm& bn, const OptTensor& from_out, bool relu)
      : grad(aten_contiguous(from, suggests_channels_last(x))),
        x(aten_contiguous(x, suggests_channels_last(x))),
        bn(bn, std::nullopt, x),
        relu(relu),
        channels_last(suggests_channels_last(x)) {
    if (from_out) out = aten_contiguous(*from_out, channels_last);
  }

  BnGradient pointers() const {
    return {
        grad.const_data_ptr(),        x.const_data_ptr(), out ? out->const_data_ptr() : nullptr, bn.pointers(), relu,
        bn_shape_of(x, channels_last)};
  }
};

// The sums of g and of g * xhat, and g itself in `masked_grad` if given.
std::tuple<Tensor, Tensor> gradient_sums(const Gradient& from, const OptTensor& masked_grad);

// An uninitialised tensor of one value per channel, in the dtype of sums: float64 if x is float64, else float32.
Tensor channel_sums(const Tensor& x, int64_t channels);

Tensor workspace_of(int64_t bytes, const Tensor& like);

}  // namespace resnet_fused::cuda
