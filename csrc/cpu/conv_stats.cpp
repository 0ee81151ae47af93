// conv_stats on the CPU: the convolution, then one pass for its output's mean and variance.
#include "cpu/bn_train.h"
#include "cpu/run_conv.h"

namespace resnet_fused::cpu {

namespace {

// Weights change at every step, so nothing is kept.
std::tuple<Tensor, Tensor, Tensor> conv_stats(Tensor x, OptTensor pre_gamma, OptTensor pre_beta, OptTensor pre_mean,
                                              OptTensor pre_var, double pre_eps, Tensor weight, OptTensor bias,
                                              Ints stride, Ints padding, Ints dilation, int64_t groups,
                                              bool /*keep_packed*/, bool /*allow_tf32*/) {
  const Conv conv = make_conv("conv_stats", x, weight, bias, {}, stride, padding, dilation, groups,
                              {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps});
  const Tensor y = run_conv(without_pre(conv), Purpose::kForward, no_residual, /*relu=*/false, /*keep_packed=*/false,
                            /*internal=*/false);
  const bool channels_last = suggests_channels_last(y);
  const auto [mean, var] = batch_moments(aten_contiguous(y, channels_last), channels_last);
  return {y, mean, var};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) { m.impl("conv_stats", TORCH_BOX(&conv_stats)); }

}  // namespace resnet_fused::cpu
