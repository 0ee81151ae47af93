// conv_backward_reduce on CUDA: a convolution's input gradient with the sums of the BatchNorm before it.
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <limits>

#include "common/problem.h"
#include "cuda/kernels/kernels.h"
#include "cuda/ops/first_use.h"
#include "cuda/ops/operands.h"
#include "cuda/ops/passes.h"
#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

namespace {

using torch::stable::accelerator::DeviceGuard;

constexpr const char* kOp = "conv_backward_reduce";
constexpr Pair kOne{1, 1};

// Arguments: the forward convolution of relu(bn(x)), and the gradients.
struct Call {
  const Conv& forward;
  const BatchNorm& bn;
  const Tensor& grad;
  const OptTensor& grad_addend;
  bool allow_tf32;
};

// Padding of the output gradient: the filter's reach minus the forward padding.
Pair flipped_padding(const Conv& forward) {
  return {forward.dilation[0] * (forward.r - 1) - forward.padding[0],
          forward.dilation[1] * (forward.s - 1) - forward.padding[1]};
}

// The input gradient is a convolution of the output gradient with the flipped filter.
ConvProblem problem_of(const Call& call) {
  const Conv& forward = call.forward;
  const Pair padding = flipped_padding(forward);
  ConvProblem p;
  p.dtype = dtype_of(forward.x);
  p.main = shape_of(forward);
  std::swap(p.main.h, p.main.p), std::swap(p.main.w, p.main.q), std::swap(p.main.c, p.main.k);
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  p.main.pad_h = static_cast<int32_t>(std::clamp<int64_t>(padding[0], -1, kMost));
  p.main.pad_w = static_cast<int32_t>(std::clamp<int64_t>(padding[1], -1, kMost));
  p.mode = ConvFwdMode::kGradientSums;
  p.residual = call.grad_addend.has_value();
  p.aligned = is_aligned(call.grad) && is_aligned(forward.x) && is_aligned(forward.weight) &&
              (!call.grad_addend || is_aligned(*call.grad_addend));
  p.allow_tf32 = call.allow_tf32;
  return p;
}

// One kernel stores the gradient and partial sums; bn_finish combines the sums.
std::tuple<Tensor, Tensor, Tensor> run_kernel(const Call& call, const ConvPlan& plan, const Queue& queue) {
  const Conv& forward = call.forward;
  const Conv flipped = make_conv(kOp, call.grad, aten_flipped(forward.weight), {}, call.bn, kOne,
                                 flipped_padding(forward), forward.dilation, /*groups=*/1);
  const Operands main(flipped);
  const Tensor pre_bn = aten_contiguous(forward.x, true);
  OptTensor grad_addend;
  if (call.grad_addend) grad_addend = aten_contiguous(*call.grad_addend, true);
  const Tensor out = aten_empty(pre_bn.sizes(), pre_bn, /*channels_last=*/true);
  const Tensor sum_g = channel_sums(pre_bn, forward.c), sum_g_xhat = channel_sums(pre_bn, forward.c);

  ConvFwdParams p;
  p.main = main.pointers();
  p.residual = grad_addend ? grad_addend->const_data_ptr() : nullptr;
  p.pre_bn = pre_bn.const_data_ptr();
  p.out = out.mutable_data_ptr();
  BnFinishParams last;
  last.parts.what = Parts::kSums;
  last.parts.dtype = plan.variant.dtype;
  last.parts.channels = static_cast<int32_t>(forward.c);
  last.parts.total = static_cast<uint32_t>(forward.n * forward.h * forward.w);
  last.parts.each = plan.variant.tile_m;
  last.parts.parts = static_cast<int32_t>((last.parts.total + last.parts.each - 1) / last.parts.each);
  const Tensor workspace = workspace_of(finish_workspace(last.parts), pre_bn);
  last.parts.data = workspace.mutable_data_ptr();
  last.first = sum_g.mutable_data_ptr(), last.second = sum_g_xhat.mutable_data_ptr();
  last.var = p.main.bn.var, last.eps = p.main.bn.eps;
  p.statistics = static_cast<float*>(last.parts.data);
  launch_conv_fwd(p, plan.variant, queue);
  launch_bn_finish(last, queue);
  return {aten_contiguous(out, suggests_channels_last(forward.x)), sum_g, sum_g_xhat};
}

// torch's input gradient, an addition if `grad_addend` is given, then a pass over the gradient and x for the sums.
std::tuple<Tensor, Tensor, Tensor> run_torch(const Call& call, const Queue& queue) {
  const Conv& forward = call.forward;
  const bool channels_last = suggests_channels_last(forward.x);
  const Tensor pre_bn = aten_contiguous(forward.x, channels_last);
  // torch chooses the format from all three tensors; two in x's format are enough.
  const Tensor out =
      aten_contiguous(aten_convolution_backward(GradientOf::kInput, aten_contiguous(call.grad, channels_last), pre_bn,
                                                forward.weight, kOne, forward.padding, forward.dilation, /*groups=*/1),
                      channels_last);
  if (call.grad_addend)
    add_act_into(out, out, Vectors({}, std::nullopt, pre_bn), call.grad_addend, nullptr, false, channels_last);
  const Tensor sum_g = channel_sums(pre_bn, forward.c), sum_g_xhat = channel_sums(pre_bn, forward.c);
  const Vectors bn(call.bn, std::nullopt, pre_bn);
  BnBackwardReduceParams p;
  p.from = {out.const_data_ptr(), pre_bn.const_data_ptr(), /*out=*/nullptr,
            bn.pointers(),        /*relu=*/true,           bn_shape_of(pre_bn, channels_last)};
  const Tensor workspace = workspace_of(bn_backward_reduce_workspace(p, queue.sm_count), pre_bn);
  p.workspace = workspace.mutable_data_ptr();
  p.sum_g = sum_g.mutable_data_ptr(), p.sum_g_xhat = sum_g_xhat.mutable_data_ptr();
  launch_checked(p, queue, pre_bn.get_device_index());
  return {out, sum_g, sum_g_xhat};
}

std::tuple<Tensor, Tensor, Tensor> conv_backward_reduce(const Tensor& grad, const Tensor& weight, const Ints& padding,
                                                        const Ints& dilation, const Tensor& x, const OptTensor& gamma,
                                                        const OptTensor& beta, const OptTensor& mean,
                                                        const OptTensor& var, double eps, const OptTensor& grad_addend,
                                                        bool allow_tf32) {
  const Conv forward = make_conv(kOp, x, weight, {}, {}, kOne, padding, dilation, /*groups=*/1);
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_conv_gradient(kOp, grad, forward, bn, grad_addend);
  const int device = x.get_device_index();
  const DeviceGuard guard(device);
  const Call call{forward, bn, grad, grad_addend, allow_tf32};
  const Queue queue = current_queue(device);
  const ConvPlan plan = plan_conv(problem_of(call), device);
  return plan.engine == ConvEngine::kTorch ? run_torch(call, queue) : run_kernel(call, plan, queue);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CUDA, m) { IMPL_CHECKED(m, conv_backward_reduce); }

}  // namespace resnet_fused::cuda
