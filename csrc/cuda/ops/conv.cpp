// Convolution ops on CUDA: check, plan, allocate, launch. Nothing waits for the device, so ops can be captured in a
// graph.
#include "cuda/ops/conv.h"

#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>

#include "cuda/kernels/kernels.h"
#include "cuda/ops/first_use.h"
#include "cuda/ops/operands.h"
#include "cuda/ops/passes.h"
#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

namespace {

using torch::stable::accelerator::DeviceGuard;

Problem problem_of(const ConvCall& call) {
  const Conv& conv = call.conv;
  Problem p;
  p.dtype = dtype_of(conv.x);
  p.main = shape_of(conv);
  p.groups = conv.groups;
  p.residual = call.residual != nullptr;
  p.aligned = is_aligned(conv.x) && is_aligned(conv.weight) && (!call.residual || is_aligned(*call.residual)) &&
              (!call.projection || (is_aligned(call.projection->x) && is_aligned(call.projection->weight))) &&
              (!call.forward || is_aligned(call.forward->x));
  p.allow_tf32 = call.allow_tf32;
  if (call.projection) p.projection = shape_of(*call.projection);
  const bool prologue = call.projection ? call.projection->pre.present() : conv.pre.present();
  p.mode = {prologue ? Prologue::kBnRelu : Prologue::kNone, call.epilogue};
  return p;
}

Plan plan_of(const ConvCall& call) { return plan_now(problem_of(call), call.conv.x.get_device_index()); }

BnParts parts_of(const Conv& conv, const Plan& plan) {
  BnParts parts;
  parts.what = has_moments(plan.variant.mode) ? Parts::kMoments : Parts::kSums;
  parts.dtype = plan.variant.dtype;
  parts.channels = static_cast<int32_t>(conv.k);
  parts.total = static_cast<uint32_t>(conv.n * conv.oh * conv.ow);
  parts.each = plan.part;
  parts.parts = static_cast<int32_t>((parts.total + parts.each - 1) / parts.each);
  return parts;
}

// What bn_finish makes of the parts that a kernel leaves: allocates the results and the workspace.
struct Finish {
  Tensor first, second, workspace;
  BnFinishParams params;

  Finish(const Conv& conv, const BnParts& parts)
      : first(channel_sums(conv.x, conv.k)),
        second(channel_sums(conv.x, conv.k)),
        workspace(workspace_of(finish_workspace(parts), conv.x)) {
    params.parts = parts;
    params.parts.data = workspace.mutable_data_ptr();
    params.first = first.mutable_data_ptr(), params.second = second.mutable_data_ptr();
  }
};

void launch(const ConvFwdParams& params, const Plan& plan, const Queue& queue) {
  switch (plan.engine) {
#define LAUNCH_PLANNED(engine, kernel) \
  case Engine::engine:                 \
    return launch_##kernel(params, plan.variant, queue);
    CONV_KERNELS(LAUNCH_PLANNED)
#undef LAUNCH_PLANNED
    default:
      throw std::logic_error("conv: the plan is not one of a convolution kernel");  // never: the callers check
  }
}

ConvResult run_kernel(const ConvCall& call, const Plan& plan) {
  const Conv& conv = call.conv;
  const Operands main(conv);
  std::optional<Operands> projection;
  if (call.projection) projection.emplace(*call.projection);
  OptTensor residual, partials, pre_bn;
  if (call.residual) residual = aten_contiguous(*call.residual, true);
  if (call.forward) pre_bn = aten_contiguous(call.forward->x, true);
  if (plan.workspace)
    partials = aten_empty({plan.workspace / static_cast<int64_t>(sizeof(float))}, conv.x, /*channels_last=*/false,
                          ScalarType::Float);
  std::optional<Finish> finish;
  if (leaves_parts(plan.variant.mode)) finish.emplace(conv, parts_of(conv, plan));
  ConvResult result{aten_empty(conv.output_sizes(), conv.x, /*channels_last=*/true), {}, {}};

  ConvFwdParams p;
  p.main = main.pointers();
  if (projection) p.projection = projection->pointers();
  p.residual = residual ? residual->const_data_ptr() : nullptr;
  p.out = result.out.mutable_data_ptr();
  p.partials = partials ? static_cast<float*>(partials->mutable_data_ptr()) : nullptr;
  p.splits = plan.splits;
  p.dp_tiles = plan.dp_tiles, p.sk_units = plan.sk_units;
  p.relu = call.relu;
  p.pre_bn = pre_bn ? pre_bn->const_data_ptr() : nullptr;
  if (finish) p.statistics = static_cast<float*>(finish->params.parts.data);
  const Queue queue = current_queue(conv.x.get_device_index());
  launch(p, plan, queue);
  if (finish) {
    finish->params.var = p.main.bn.var, finish->params.eps = p.main.bn.eps;
    launch_bn_finish(finish->params, queue);
    result.first = finish->first, result.second = finish->second;
  }
  return result;
}

// torch's convolution. torch chooses the format from x and weight; a channels_last x is enough.
Tensor convolve(const Conv& conv, const OptTensor& bias, bool channels_last) {
  const Tensor activated =
      conv.pre.present() ? normalise(conv.x, conv.pre, std::nullopt, /*relu=*/true, channels_last) : conv.x;
  const Tensor x = channels_last ? aten_contiguous(activated, true) : activated;
  return aten_contiguous(aten_convolution(x, conv.weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups),
                         channels_last);
}

// torch's convolutions without bias, then one launch in place on their output, which adds it.
Tensor run_torch_affine(const ConvCall& call) {
  const Conv& conv = call.conv;
  const Tensor y = convolve(conv, std::nullopt, conv.channels_last);
  OptTensor shortcut;
  if (call.residual) shortcut = *call.residual;
  std::optional<Vectors> shortcut_bn;  // and bias: applied to the projection's pre-BN output when it is added
  if (call.projection) {
    shortcut = convolve(*call.projection, std::nullopt, conv.channels_last);
    shortcut_bn.emplace(call.projection->bn, call.projection->bias, conv.x);
  }
  add_act_into(y, y, Vectors(conv.bn, conv.bias, conv.x), shortcut, shortcut_bn ? &*shortcut_bn : nullptr, call.relu,
               conv.channels_last);
  return y;
}

// torch's input gradient, an addition if there is an addend, then a pass over the gradient and x for the sums.
ConvResult run_torch_gradient(const ConvCall& call) {
  const Conv& forward = *call.forward;
  const bool channels_last = suggests_channels_last(forward.x);
  const Tensor x = aten_contiguous(forward.x, channels_last);
  // torch chooses the format from all three tensors; two in x's format are enough.
  const Tensor out = aten_contiguous(
      aten_convolution_backward(GradientOf::kInput, aten_contiguous(call.conv.x, channels_last), x, forward.weight,
                                forward.stride, forward.padding, forward.dilation, forward.groups),
      channels_last);
  if (call.residual)
    add_act_into(out, out, Vectors({}, std::nullopt, x), *call.residual, nullptr, false, channels_last);
  const auto [sum_g, sum_g_xhat] =
      gradient_sums(Gradient(out, x, call.conv.bn, std::nullopt, /*relu=*/true), std::nullopt);
  return {out, sum_g, sum_g_xhat};
}

ConvResult run_torch(const ConvCall& call) {
  if (call.epilogue == Epilogue::kGradientSums) return run_torch_gradient(call);
  if (call.epilogue != Epilogue::kMoments) return {run_torch_affine(call), {}, {}};
  const Tensor pre_bn = convolve(call.conv, call.conv.bias, call.conv.channels_last);
  const auto [mean, var] = batch_moments(pre_bn, call.conv.channels_last);
  return {pre_bn, mean, var};
}

// The output of an inference op, in the format of its arguments.
Tensor infer(const ConvCall& call) {
  const DeviceGuard guard(call.conv.x.get_device_index());
  return in_format(run_conv(call).out, call.conv.channels_last);
}

Tensor conv_bn_act(const Tensor& x, const Tensor& weight, const OptTensor& bias, const OptTensor& gamma,
                   const OptTensor& beta, const OptTensor& mean, const OptTensor& var, double eps, const Ints& stride,
                   const Ints& padding, const Ints& dilation, int64_t groups, const OptTensor& residual, bool relu,
                   bool /*keep_packed: CUDA packs no weights*/, bool allow_tf32,
                   bool /*internal: torch pools CUDA memory*/) {
  const Conv conv =
      make_conv("conv_bn_act", x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  check_residual("conv_bn_act", residual, conv.output_sizes(), conv.x);
  return infer({conv, Epilogue::kAffine, nullptr, residual ? &*residual : nullptr, relu, allow_tf32});
}

Tensor bn_relu_conv_bn_act(const Tensor& x, const OptTensor& pre_gamma, const OptTensor& pre_beta,
                           const Tensor& pre_mean, const Tensor& pre_var, double pre_eps, const Tensor& weight,
                           const OptTensor& bias, const OptTensor& gamma, const OptTensor& beta, const OptTensor& mean,
                           const OptTensor& var, double eps, const Ints& stride, const Ints& padding,
                           const Ints& dilation, int64_t groups, const OptTensor& residual, bool relu,
                           bool /*keep_packed*/, bool allow_tf32, bool /*internal*/) {
  constexpr const char* op = "bn_relu_conv_bn_act";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups,
                              {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps});
  check_residual(op, residual, conv.output_sizes(), conv.x);
  return infer({conv, Epilogue::kAffine, nullptr, residual ? &*residual : nullptr, relu, allow_tf32});
}

Tensor conv_bn_proj_act(const Tensor& x, const Tensor& weight, const OptTensor& bias, const OptTensor& gamma,
                        const OptTensor& beta, const OptTensor& mean, const OptTensor& var, double eps,
                        const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                        const Tensor& proj_x, const Tensor& proj_weight, const OptTensor& proj_bias,
                        const OptTensor& proj_gamma, const OptTensor& proj_beta, const OptTensor& proj_mean,
                        const OptTensor& proj_var, double proj_eps, const Ints& proj_stride, const OptTensor& pre_gamma,
                        const OptTensor& pre_beta, const OptTensor& pre_mean, const OptTensor& pre_var, double pre_eps,
                        bool relu, bool /*keep_packed*/, bool allow_tf32, bool /*internal*/) {
  constexpr const char* op = "conv_bn_proj_act";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  const Conv projection =
      make_conv(op, proj_x, proj_weight, proj_bias, {proj_gamma, proj_beta, proj_mean, proj_var, proj_eps}, proj_stride,
                {0, 0}, {1, 1}, 1, {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps}, "proj_");
  check_projection(op, conv, projection);
  return infer({conv, Epilogue::kProjection, &projection, nullptr, relu, allow_tf32});
}

Tensor conv_bn_relu_pool(const Tensor& x, const Tensor& weight, const OptTensor& bias, const OptTensor& gamma,
                         const OptTensor& beta, const OptTensor& mean, const OptTensor& var, double eps,
                         const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                         const Ints& pool_kernel, const Ints& pool_stride, const Ints& pool_padding,
                         bool /*keep_packed*/, bool allow_tf32, bool /*internal*/) {
  constexpr const char* op = "conv_bn_relu_pool";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  const MaxPool pool{pool_kernel, pool_stride, pool_padding};
  check_pool(op, conv.output_sizes(), pool);
  const DeviceGuard guard(conv.x.get_device_index());
  const ConvCall call{conv, Epilogue::kAffine, nullptr, nullptr, /*relu=*/true, allow_tf32};
  const Plan plan = plan_of(call);
  // torch's pre-BN output is normalised while it is pooled. The output of our kernel is normalised already.
  const bool is_pre_bn = plan.engine == Engine::kTorch;
  const Tensor y = is_pre_bn ? convolve(conv, std::nullopt, /*channels_last=*/true) : run_kernel(call, plan).out;
  const Vectors bn = is_pre_bn ? Vectors(conv.bn, conv.bias, conv.x) : Vectors({}, std::nullopt, conv.x);
  const Tensor out = relu_max_pool(y, bn, pool, /*argmax=*/std::nullopt);
  return in_format(out, conv.channels_last);
}

std::tuple<Tensor, Tensor, Tensor> conv_stats(const Tensor& x, const OptTensor& pre_gamma, const OptTensor& pre_beta,
                                              const OptTensor& pre_mean, const OptTensor& pre_var, double pre_eps,
                                              const Tensor& weight, const OptTensor& bias, const Ints& stride,
                                              const Ints& padding, const Ints& dilation, int64_t groups,
                                              bool /*keep_packed*/, bool allow_tf32) {
  const Conv conv = make_conv("conv_stats", x, weight, bias, {}, stride, padding, dilation, groups,
                              {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps});
  const DeviceGuard guard(x.get_device_index());
  const ConvResult y = run_conv({conv, Epilogue::kMoments, nullptr, nullptr, /*relu=*/false, allow_tf32});
  return {in_format(y.out, conv.channels_last), *y.first, *y.second};
}

}  // namespace

ConvResult run_conv(const ConvCall& call) {
  const Plan plan = plan_of(call);
  return plan.engine == Engine::kTorch ? run_torch(call) : run_kernel(call, plan);
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CUDA, m) {
  IMPL_CHECKED(m, conv_bn_act);
  IMPL_CHECKED(m, bn_relu_conv_bn_act);
  IMPL_CHECKED(m, conv_bn_proj_act);
  IMPL_CHECKED(m, conv_bn_relu_pool);
  IMPL_CHECKED(m, conv_stats);
}

}  // namespace resnet_fused::cuda
