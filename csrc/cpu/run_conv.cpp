#include "cpu/run_conv.h"

#include "cpu/bn_add_act.h"
#include "cpu/deferred.h"
#include "cpu/environment.h"
#include "cpu/memory.h"
#include "cpu/onednn.h"
#include "cpu/scale_shift.h"

namespace resnet_fused::cpu {

namespace {

// torch's convolution. Where oneDNN is wrong, x is padded with columns of zeros to a second output column, which is
// dropped.
Tensor torch_conv(const Conv& conv, const OptTensor& bias) {
  const auto of = [&](const Tensor& x) {
    return aten_convolution(x, conv.weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups);
  };
  if (!onednn_is_wrong(dtype_of(conv.x), conv.ow, cpu_features())) return of(conv.x);
  const int64_t w = conv.x.size(3);
  const Sizes sizes{conv.n, conv.c, conv.h, w + conv.stride[1]};
  Tensor wide = aten_empty(sizes, conv.x, /*channels_last=*/true);
  torch::stable::zero_(wide);
  Tensor left = torch::stable::narrow(wide, 3, 0, w);
  torch::stable::copy_(left, conv.x);
  Tensor y = of(wide);
  return torch::stable::narrow(y, 3, 0, 1);
}

// The engine that supports everything: torch's convolution, then one pass for the rest, if there is any.
Tensor composed(const Conv& call, const OptTensor& residual, bool relu, bool in_float32) {
  run_deferred();
  Conv conv = with_weight(call);
  const ScalarType dtype = scalar_type_of(conv.x), type = in_float32 ? ScalarType::Float : dtype;
  const bool ends = !conv.bn.present() && !residual && !relu;
  OptTensor first, later;  // bias added before or after the convolution returns
  if (conv.bias && (ends || !bias_folds(conv)))
    first = aten_to(*conv.bias, type);
  else
    later = conv.bias;
  if (in_float32) conv.x = aten_to(conv.x, type), conv.weight = aten_to(conv.weight, type);
  Tensor y = torch_conv(conv, first);
  if (in_float32) y = aten_to(y, dtype);
  y = in_format(y, conv.channels_last);
  if (ends) return y;
  OptTensor r;
  if (residual) r = aten_contiguous(*residual, conv.channels_last);
  bn_add_act_into(y, y, later, conv.bn, r, relu, conv.channels_last);
  return y;
}

}  // namespace

Tensor run_conv(const Conv& conv, Purpose purpose, const Residual& residual, bool relu, bool keep_packed,
                bool internal) {
  const ReadsEnvironmentOnce here;
  return run_conv(conv, plan_of(conv, purpose), residual, relu, keep_packed, internal);
}

Tensor run_conv(const Conv& conv, const Plan& plan, const Residual& residual, bool relu, bool keep_packed,
                bool internal) {
  const ReadsEnvironmentOnce here;
  const Engine engine = plan.engine;
  if (engine == Engine::kComposed) return composed(conv, residual(nullptr), relu, plan.in_float32);
  if (engine == Engine::kOneDnn) {
    const OptTensor r = residual(nullptr);
    run_deferred();  // a projection may wait
    OptTensor out = onednn_conv(with_weight(conv), r, relu, keep_packed);
    return out ? *out : composed(conv, residual(nullptr), relu, plan.in_float32);
  }
  const Sizes sizes = conv.output_sizes();
  Tensor out = output_buffer(sizes, conv.x, internal || is_copied(sizes, conv.channels_last));
  const auto nhwc_residual = [&]() -> OptTensor {
    OptTensor r = residual(&out);
    if (r) r = aten_contiguous(*r, /*channels_last=*/true);
    return r;
  };
  if ((engine == Engine::kWinograd && winograd_conv(conv, nhwc_residual(), relu, keep_packed, out)) ||
      direct_conv(conv, nhwc_residual(), nullptr, relu, keep_packed, out))
    return in_format(out, conv.channels_last);
  return composed(conv, residual(nullptr), relu, plan.in_float32);
}

}  // namespace resnet_fused::cpu
