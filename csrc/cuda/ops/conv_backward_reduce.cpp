// conv_backward_reduce on CUDA: a convolution's input gradient with the sums of the BatchNorm before it.
#include <torch/csrc/stable/accelerator.h>

#include <utility>

#include "cuda/ops/conv.h"
#include "cuda/ops/first_use.h"

namespace resnet_fused::cuda {

namespace {

constexpr const char* kOp = "conv_backward_reduce";
constexpr Pair kOne{1, 1};

// The input gradient as a convolution of the output gradient with the flipped filter (Dumoulin and Visin 2016,
// arXiv:1603.07285, section 4.3): input and output change places, and the padding is the filter's reach minus the
// forward padding. Where that is negative, no kernel takes it.
Conv gradient_of(const Conv& forward, const Tensor& grad, const BatchNorm& bn) {
  Conv g = forward;
  g.x = grad;
  g.weight = torch::stable::transpose(forward.weight, 0, 1);
  g.flipped = true;
  g.bn = bn;
  std::swap(g.c, g.k), std::swap(g.h, g.oh), std::swap(g.w, g.ow);
  g.padding = {forward.dilation[0] * (forward.r - 1) - forward.padding[0],
               forward.dilation[1] * (forward.s - 1) - forward.padding[1]};
  return g;
}

std::tuple<Tensor, Tensor, Tensor> conv_backward_reduce(const Tensor& grad, const Tensor& weight, const Ints& padding,
                                                        const Ints& dilation, const Tensor& x, const OptTensor& gamma,
                                                        const OptTensor& beta, const OptTensor& mean,
                                                        const OptTensor& var, double eps, const OptTensor& grad_addend,
                                                        bool allow_tf32) {
  const Conv forward = make_conv(kOp, x, weight, {}, {}, kOne, padding, dilation, /*groups=*/1);
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_conv_gradient(kOp, grad, forward, bn, grad_addend);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Conv gradient = gradient_of(forward, grad, bn);
  const ConvResult y = run_conv({gradient, Epilogue::kGradientSums, nullptr, grad_addend ? &*grad_addend : nullptr,
                                 /*relu=*/false, allow_tf32, &forward});
  return {in_format(y.out, suggests_channels_last(x)), *y.first, *y.second};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CUDA, m) { IMPL_CHECKED(m, conv_backward_reduce); }

}  // namespace resnet_fused::cuda
