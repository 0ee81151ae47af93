// max_pool2d(relu(bn(x))) and its gradient in training on CUDA: check, convert to NHWC, launch. Nothing waits for the
// device.
#include <torch/csrc/stable/accelerator.h>

#include "common/problem.h"
#include "cuda/ops/first_use.h"
#include "cuda/ops/operands.h"
#include "cuda/ops/passes.h"
#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

namespace {

using torch::stable::accelerator::DeviceGuard;

std::tuple<Tensor, Tensor> bn_relu_max_pool(const Tensor& x, const OptTensor& gamma, const OptTensor& beta,
                                            const OptTensor& mean, const OptTensor& var, double eps, const Ints& kernel,
                                            const Ints& stride, const Ints& padding,
                                            bool /*internal: torch pools CUDA memory*/) {
  const BatchNorm bn{gamma, beta, mean, var, eps};
  const MaxPool pool{kernel, stride, padding};
  check_pooled("bn_relu_max_pool", x, bn, pool);
  const DeviceGuard guard(x.get_device_index());
  const bool channels_last = suggests_channels_last(x);
  const Tensor dense = aten_contiguous(x, /*channels_last=*/true);
  const Ints sizes = pooled_sizes(x.sizes(), pool);
  const Tensor argmax = aten_empty(sizes, x, /*channels_last=*/true, ScalarType::Byte);
  const Tensor out = relu_max_pool(dense, Vectors(bn, std::nullopt, x), pool, argmax);
  return {in_format(out, channels_last), in_format(argmax, channels_last)};
}

Tensor bn_relu_max_pool_backward(const Tensor& grad, const Tensor& argmax, const Tensor& x, const Ints& kernel,
                                 const Ints& stride, const Ints& padding, bool /*internal*/) {
  const MaxPool pool{kernel, stride, padding};
  check_pooled_gradient("bn_relu_max_pool_backward", grad, argmax, x, pool);
  const DeviceGuard guard(x.get_device_index());
  const Tensor from = aten_contiguous(grad, /*channels_last=*/true), taps = aten_contiguous(argmax, true);
  const Tensor to = aten_empty(x.sizes(), x, /*channels_last=*/true);
  PoolBackwardParams p;
  p.grad = from.const_data_ptr(), p.argmax = taps.const_data_ptr();
  p.shape = pool_shape_of(x, grad.sizes(), pool);
  p.to = to.mutable_data_ptr();
  const int device = x.get_device_index();
  launch_checked(p, current_queue(device), device);
  return in_format(to, suggests_channels_last(x));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CUDA, m) {
  IMPL_CHECKED(m, bn_relu_max_pool);
  IMPL_CHECKED(m, bn_relu_max_pool_backward);
}

}  // namespace resnet_fused::cuda
