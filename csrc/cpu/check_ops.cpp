// Argument checks of the ops that one device implements in Python (resnet_fused/chain/convolutions.py), the same as for
// the other's kernels.
#include "common/problem.h"

namespace resnet_fused::cpu {

namespace {

void check_conv_stats(Tensor x, OptTensor pre_gamma, OptTensor pre_beta, OptTensor pre_mean, OptTensor pre_var,
                      double pre_eps, Tensor weight, OptTensor bias, Ints stride, Ints padding, Ints dilation,
                      int64_t groups) {
  make_conv("conv_stats", x, weight, bias, {}, stride, padding, dilation, groups,
            {pre_gamma, pre_beta, pre_mean, pre_var, pre_eps});
}

void check_conv_backward_input(Tensor grad, Tensor weight, Ints padding, Ints dilation, OptTensor grad_addend) {
  make_input_gradient("conv_backward_input", grad, weight, padding, dilation, grad_addend);
}

void check_conv_backward_reduce(Tensor grad, Tensor weight, Ints padding, Ints dilation, Tensor x, OptTensor gamma,
                                OptTensor beta, OptTensor mean, OptTensor var, double eps, OptTensor grad_addend) {
  constexpr const char* op = "conv_backward_reduce";
  const Conv forward = make_conv(op, x, weight, {}, {}, {1, 1}, padding, dilation, /*groups=*/1);
  check_conv_gradient(op, grad, forward, {gamma, beta, mean, var, eps}, grad_addend);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) {
  m.impl("check_conv_stats", TORCH_BOX(&check_conv_stats));
  m.impl("check_conv_backward_reduce", TORCH_BOX(&check_conv_backward_reduce));
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CompositeExplicitAutograd, m) {
  m.impl("check_conv_backward_input", TORCH_BOX(&check_conv_backward_input));
}

}  // namespace resnet_fused::cpu
