// CUDA implementations of the inference ops: check, plan, allocate, launch. Nothing waits for the device, so ops can be
// captured in a graph.
#include <torch/csrc/stable/accelerator.h>

#include "common/problem.h"
#include "cuda/kernels/kernels.h"
#include "cuda/ops/conv.h"
#include "cuda/ops/first_use.h"
#include "cuda/ops/operands.h"
#include "cuda/ops/passes.h"
#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

namespace {

using torch::stable::accelerator::DeviceGuard;

// Arguments of an op: act(bn(conv(x)) + residual), or with a projection as shortcut.
struct Call {
  const Conv& conv;
  const Conv* projection = nullptr;
  const OptTensor& residual;
  bool relu;
  bool allow_tf32;
};

// The convolution without bias; the next kernel adds it.
Tensor convolve(const Conv& conv, bool channels_last) {
  const Tensor prepared =
      conv.pre.present() ? normalise(conv.x, conv.pre, std::nullopt, /*relu=*/true, channels_last) : conv.x;
  // torch chooses the format from x and weight; a channels_last x is enough.
  const Tensor x = channels_last ? aten_contiguous(prepared, true) : prepared;
  return aten_contiguous(
      aten_convolution(x, conv.weight, std::nullopt, conv.stride, conv.padding, conv.dilation, conv.groups),
      channels_last);
}

// The fallback engine: torch's convolutions, then one launch in place on their output.
Tensor run_torch(const Call& call) {
  const Conv& conv = call.conv;
  const Tensor y = convolve(conv, conv.channels_last);
  OptTensor shortcut = call.residual;
  std::optional<Vectors> shortcut_bn;  // and bias: applied to the projection's pre-BN output when it is added
  if (call.projection) {
    shortcut = convolve(*call.projection, conv.channels_last);
    shortcut_bn.emplace(call.projection->bn, call.projection->bias, conv.x);
  }
  add_act_into(y, y, Vectors(conv.bn, conv.bias, conv.x), shortcut, shortcut_bn ? &*shortcut_bn : nullptr, call.relu,
               conv.channels_last);
  return y;
}

ConvFwdMode mode_of(const Call& call) {
  if (call.projection)
    return call.projection->pre.present() ? ConvFwdMode::kProjectionPrologue : ConvFwdMode::kProjection;
  return call.conv.pre.present() ? ConvFwdMode::kPrologue : ConvFwdMode::kPlain;
}

ConvProblem problem_of(const Call& call) {
  const Conv &conv = call.conv, *projection = call.projection;
  ConvProblem p;
  p.dtype = dtype_of(conv.x);
  p.main = shape_of(conv);
  if (projection) p.projection = shape_of(*projection);
  p.mode = mode_of(call);
  p.groups = conv.groups;
  p.residual = call.residual.has_value();
  p.aligned = is_aligned(conv.x) && is_aligned(conv.weight) && (!call.residual || is_aligned(*call.residual)) &&
              (!projection || (is_aligned(projection->x) && is_aligned(projection->weight)));
  p.allow_tf32 = call.allow_tf32;
  return p;
}

// Returns NHWC, whatever the formats of its inputs.
Tensor run_kernel(const Call& call, const ConvPlan& plan) {
  const Conv& conv = call.conv;
  const Operands main(conv);
  std::optional<Operands> projection;
  if (call.projection) projection.emplace(*call.projection);
  OptTensor residual, partials;
  if (call.residual) residual = aten_contiguous(*call.residual, true);
  if (plan.workspace)
    partials = aten_empty({plan.workspace / static_cast<int64_t>(sizeof(float))}, conv.x, /*channels_last=*/false,
                          ScalarType::Float);
  const Tensor out = aten_empty(conv.output_sizes(), conv.x, /*channels_last=*/true);

  ConvFwdParams p;
  p.main = main.pointers();
  if (projection) p.projection = projection->pointers();
  p.residual = residual ? residual->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  p.partials = partials ? static_cast<float*>(partials->mutable_data_ptr()) : nullptr;
  p.splits = plan.splits;
  p.dp_tiles = plan.dp_tiles, p.sk_units = plan.sk_units;
  p.relu = call.relu;
  launch_planned(p, plan, current_queue(conv.x.get_device_index()));
  return out;
}

ConvPlan plan_of(const Call& call) { return plan_conv(problem_of(call), call.conv.x.get_device_index()); }

Tensor run(const Call& call) {
  const DeviceGuard guard(call.conv.x.get_device_index());
  const ConvPlan plan = plan_of(call);
  if (plan.engine == ConvEngine::kTorch) return run_torch(call);
  return aten_contiguous(run_kernel(call, plan), call.conv.channels_last);
}

Tensor conv_bn_act(const Tensor& x, const Tensor& weight, const OptTensor& bias, const OptTensor& gamma,
                   const OptTensor& beta, const OptTensor& mean, const OptTensor& var, double eps, const Ints& stride,
                   const Ints& padding, const Ints& dilation, int64_t groups, const OptTensor& residual, bool relu,
                   bool /*keep_packed: CUDA packs no weights*/, bool allow_tf32,
                   bool /*internal: torch pools CUDA memory*/) {
  const Conv conv =
      make_conv("conv_bn_act", x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  check_residual("conv_bn_act", residual, conv.output_sizes(), conv.x);
  return run({conv, nullptr, residual, relu, allow_tf32});
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
  return run({conv, nullptr, residual, relu, allow_tf32});
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
  return run({conv, &projection, std::nullopt, relu, allow_tf32});
}

Tensor conv_bn_relu_pool(const Tensor& x, const Tensor& weight, const OptTensor& bias, const OptTensor& gamma,
                         const OptTensor& beta, const OptTensor& mean, const OptTensor& var, double eps,
                         const Ints& stride, const Ints& padding, const Ints& dilation, int64_t groups,
                         const Ints& pool_kernel, const Ints& pool_stride, const Ints& pool_padding,
                         bool /*keep_packed*/, bool allow_tf32, bool /*internal*/) {
  constexpr const char* op = "conv_bn_relu_pool";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  check_pool(op, conv.output_sizes(), pool_kernel, pool_stride, pool_padding);
  const Call call{conv, nullptr, std::nullopt, /*relu=*/true, allow_tf32};
  const DeviceGuard guard(conv.x.get_device_index());
  const ConvPlan plan = plan_of(call);
  // torch's pre-BN output is normalised while it is pooled. The output of our kernel is normalised already.
  const bool pre_bn = plan.engine == ConvEngine::kTorch;
  const Tensor y = pre_bn ? convolve(conv, /*channels_last=*/true) : run_kernel(call, plan);
  const Vectors bn = pre_bn ? Vectors(conv.bn, conv.bias, conv.x) : Vectors({}, std::nullopt, conv.x);
  const Tensor out = relu_max_pool(y, bn, pool_kernel, pool_stride, pool_padding, /*argmax=*/std::nullopt);
  return aten_contiguous(out, conv.channels_last);
}

Tensor bn_add_act(const Tensor& x, const OptTensor& gamma, const OptTensor& beta, const OptTensor& mean,
                  const OptTensor& var, double eps, const OptTensor& residual, bool relu, bool /*internal*/) {
  constexpr const char* op = "bn_add_act";
  check_activation(op, x);
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_batch_norm(op, bn, x.size(1), x);
  check_residual(op, residual, x.sizes(), x);
  const DeviceGuard guard(x.get_device_index());
  return normalise(x, bn, residual, relu, suggests_channels_last(x));
}

}  // namespace

Tensor run_conv(const Conv& conv, const OptTensor& residual, bool relu, bool allow_tf32) {
  return run({conv, nullptr, residual, relu, allow_tf32});
}

void launch_planned(const ConvFwdParams& params, const ConvPlan& plan, const Queue& queue) {
  const auto launch = plan.engine == ConvEngine::kSm90Rows ? &launch_conv_rows
                      : plan.engine == ConvEngine::kSm90   ? &launch_conv_sm90
                                                           : &launch_conv_fwd;
  launch(params, plan.variant, queue);
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CUDA, m) {
  IMPL_CHECKED(m, conv_bn_act);
  IMPL_CHECKED(m, bn_relu_conv_bn_act);
  IMPL_CHECKED(m, conv_bn_proj_act);
  IMPL_CHECKED(m, conv_bn_relu_pool);
  IMPL_CHECKED(m, bn_add_act);
}

}  // namespace resnet_fused::cuda
