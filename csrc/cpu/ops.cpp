// The CPU kernels of every op: check, pick an engine, run it.
#include "common/problem.h"
#include "cpu/bn_add_act.h"

namespace resnet_fused::cpu {

namespace {

// The engine that takes everything: torch's convolution, then one pass for the rest.
Tensor composed(const Conv& conv, const OptTensor& residual, bool relu) {
  Tensor y = aten_contiguous(
      aten_convolution(conv.x, conv.weight, std::nullopt, conv.stride, conv.padding, conv.dilation, conv.groups),
      conv.channels_last);
  OptTensor r;
  if (residual) r = aten_contiguous(*residual, conv.channels_last);
  bn_add_act_into(y, y, conv.bias, conv.bn, r, relu, conv.channels_last);
  return y;
}

Tensor run(const Conv& conv, const OptTensor& residual, bool relu, bool keep_packed) {
  (void)keep_packed;
  return composed(conv, residual, relu);
}

Tensor conv_bn_act(Tensor x, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta, OptTensor mean, OptTensor var,
                   double eps, Ints stride, Ints padding, Ints dilation, int64_t groups, OptTensor residual, bool relu,
                   bool keep_packed) {
  const Conv conv = make_conv("conv_bn_act", x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  check_residual("conv_bn_act", residual, conv.output_sizes(), conv.x);
  return run(conv, residual, relu, keep_packed);
}

Tensor conv_bn_proj_act(Tensor x, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta, OptTensor mean, OptTensor var,
                        double eps, Ints stride, Ints padding, Ints dilation, int64_t groups, Tensor proj_x, Tensor proj_weight,
                        OptTensor proj_bias, OptTensor proj_gamma, OptTensor proj_beta, OptTensor proj_mean, OptTensor proj_var,
                        double proj_eps, Ints proj_stride, bool relu, bool keep_packed) {
  constexpr const char* op = "conv_bn_proj_act";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  const Conv projection = make_conv(op, proj_x, proj_weight, proj_bias, {proj_gamma, proj_beta, proj_mean, proj_var, proj_eps},
                                    proj_stride, {0, 0}, {1, 1}, 1);
  check_projection(op, conv, projection);
  return run(conv, run(projection, std::nullopt, false, keep_packed), relu, keep_packed);
}

Tensor conv_bn_relu_pool(Tensor x, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta, OptTensor mean, OptTensor var,
                         double eps, Ints stride, Ints padding, Ints dilation, int64_t groups, Ints pool_kernel, Ints pool_stride,
                         Ints pool_padding, bool keep_packed) {
  constexpr const char* op = "conv_bn_relu_pool";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  check_pool(op, conv, pool_kernel, pool_stride, pool_padding);
  return aten_max_pool2d(run(conv, std::nullopt, true, keep_packed), pool_kernel, pool_stride, pool_padding);
}

Tensor bn_add_act(Tensor x, OptTensor gamma, OptTensor beta, OptTensor mean, OptTensor var, double eps, OptTensor residual,
                  bool relu) {
  constexpr const char* op = "bn_add_act";
  check_activation(op, x);
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_batch_norm(op, bn, x.size(1), x);
  check_residual(op, residual, sizes_of(x), x);
  const bool channels_last = suggests_channels_last(x);
  OptTensor r;
  if (residual) r = aten_contiguous(*residual, channels_last);
  Tensor out = aten_empty(sizes_of(x), x, channels_last);
  bn_add_act_into(out, aten_contiguous(x, channels_last), std::nullopt, bn, r, relu, channels_last);
  return out;
}

void forget_packed(std::vector<Tensor> weights) { (void)weights; }
int64_t packed_bytes() { return 0; }
std::string explain_cpu(Ints, Ints, Ints, Ints, Ints, int64_t, std::string) { return "composed"; }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) {
  m.impl("conv_bn_act", TORCH_BOX(&conv_bn_act));
  m.impl("conv_bn_proj_act", TORCH_BOX(&conv_bn_proj_act));
  m.impl("conv_bn_relu_pool", TORCH_BOX(&conv_bn_relu_pool));
  m.impl("bn_add_act", TORCH_BOX(&bn_add_act));
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CompositeExplicitAutograd, m) {
  m.impl("forget_packed", TORCH_BOX(&forget_packed));
  m.impl("packed_bytes", TORCH_BOX(&packed_bytes));
  m.impl("explain_cpu", TORCH_BOX(&explain_cpu));
}

}  // namespace resnet_fused::cpu
