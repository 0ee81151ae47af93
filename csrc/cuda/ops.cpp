// The CUDA kernels of every op: check, allocate, launch. The convolution is torch's; what follows it is one launch, in
// place on the convolution's output. Nothing here waits for the device, so that every op can be captured in a graph.
#include <torch/csrc/stable/accelerator.h>

#include "common/problem.h"
#include "cuda/kernels.h"
#include "cuda/runtime.h"

namespace resnet_fused::cuda {

namespace {

using torch::stable::accelerator::DeviceGuard;

Dtype dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    default:  // the checks let no fifth type through
      return Dtype::kFloat32;
  }
}

// A BatchNorm, with its convolution's bias, as the kernels take it. Holds the tensors that it points into.
class Vectors {
 public:
  Vectors(const BatchNorm& bn, const OptTensor& bias, const Tensor& x)
      : held_{readable(bn.gamma, x), readable(bn.beta, x), readable(bn.mean, x), readable(bn.var, x),
              readable(bias, x)},
        eps_(bn.eps) {}

  BatchNormVectors pointers() const {
    return {pointer(held_[0]), pointer(held_[1]), pointer(held_[2]), pointer(held_[3]), pointer(held_[4]), eps_};
  }

 private:
  // Kernels read float32 and x's own dtype. Anything else is cast by torch: eager BatchNorm takes no other mix at all.
  static OptTensor readable(const OptTensor& t, const Tensor& x) {
    if (!t || t->scalar_type() == ScalarType::Float || t->scalar_type() == x.scalar_type()) return t;
    return aten_to(*t, ScalarType::Float);
  }
  static ChannelVector pointer(const OptTensor& t) {
    if (!t) return {};
    return {t->const_data_ptr(), t->stride(0), dtype_of(*t)};
  }

  OptTensor held_[5];
  double eps_;
};

// A projection's raw convolution, which waits for its bias and BatchNorm until it is added.
struct Projection {
  Tensor raw;
  Vectors bn;
};

// x and out are dense in one layout; the shortcut, if any, is brought to it.
void finish(const Tensor& out, const Tensor& x, const Vectors& bn, const OptTensor& residual,
            const Projection* projection, bool relu, bool channels_last) {
  if (out.numel() == 0) return;
  OptTensor shortcut;
  if (projection) shortcut = aten_contiguous(projection->raw, channels_last);
  if (residual) shortcut = aten_contiguous(*residual, channels_last);

  BnAddActParams p;
  p.x = x.const_data_ptr();
  p.shortcut = shortcut ? shortcut->const_data_ptr() : nullptr;
  p.out = out.mutable_data_ptr();
  p.bn = bn.pointers();
  if (projection) p.shortcut_bn = projection->bn.pointers();
  p.projected = projection != nullptr;
  p.relu = relu;
  p.dtype = dtype_of(x);
  p.layout = channels_last ? Layout::kNHWC : Layout::kNCHW;
  p.batch = static_cast<int32_t>(x.size(0));
  p.channels = static_cast<int32_t>(x.size(1));
  p.area = static_cast<int32_t>(x.size(2) * x.size(3));
  launch_bn_add_act(p, current_queue(x.get_device_index()));
}

// The raw convolution: its bias is left to the kernel that follows.
Tensor convolve(const Conv& conv, bool channels_last) {
  // torch picks the format by x and weight; x decides alone once it is channels_last.
  const Tensor x = channels_last ? aten_contiguous(conv.x, true) : conv.x;
  return aten_contiguous(
      aten_convolution(x, conv.weight, std::nullopt, conv.stride, conv.padding, conv.dilation, conv.groups),
      channels_last);
}

Tensor run(const Conv& conv, const OptTensor& residual, const Conv* projection, bool relu) {
  const DeviceGuard guard(conv.x.get_device_index());
  const Tensor y = convolve(conv, conv.channels_last);
  std::optional<Projection> p;
  if (projection)
    p = Projection{convolve(*projection, conv.channels_last), Vectors(projection->bn, projection->bias, conv.x)};
  finish(y, y, Vectors(conv.bn, conv.bias, conv.x), residual, p ? &*p : nullptr, relu, conv.channels_last);
  return y;
}

Tensor conv_bn_act(Tensor x, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta, OptTensor mean,
                   OptTensor var, double eps, Ints stride, Ints padding, Ints dilation, int64_t groups,
                   OptTensor residual, bool relu, bool /*keep_packed: torch's convolution takes weights as they are*/) {
  const Conv conv =
      make_conv("conv_bn_act", x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  check_residual("conv_bn_act", residual, conv.output_sizes(), conv.x);
  return run(conv, residual, nullptr, relu);
}

Tensor conv_bn_proj_act(Tensor x, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta, OptTensor mean,
                        OptTensor var, double eps, Ints stride, Ints padding, Ints dilation, int64_t groups,
                        Tensor proj_x, Tensor proj_weight, OptTensor proj_bias, OptTensor proj_gamma,
                        OptTensor proj_beta, OptTensor proj_mean, OptTensor proj_var, double proj_eps, Ints proj_stride,
                        bool relu, bool /*keep_packed*/) {
  constexpr const char* op = "conv_bn_proj_act";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  const Conv projection =
      make_conv(op, proj_x, proj_weight, proj_bias, {proj_gamma, proj_beta, proj_mean, proj_var, proj_eps}, proj_stride,
                {0, 0}, {1, 1}, 1);
  check_projection(op, conv, projection);
  return run(conv, std::nullopt, &projection, relu);
}

Tensor conv_bn_relu_pool(Tensor x, Tensor weight, OptTensor bias, OptTensor gamma, OptTensor beta, OptTensor mean,
                         OptTensor var, double eps, Ints stride, Ints padding, Ints dilation, int64_t groups,
                         Ints pool_kernel, Ints pool_stride, Ints pool_padding, bool /*keep_packed*/) {
  constexpr const char* op = "conv_bn_relu_pool";
  const Conv conv = make_conv(op, x, weight, bias, {gamma, beta, mean, var, eps}, stride, padding, dilation, groups);
  check_pool(op, conv, pool_kernel, pool_stride, pool_padding);
  return aten_max_pool2d(run(conv, std::nullopt, nullptr, true), pool_kernel, pool_stride, pool_padding);
}

Tensor bn_add_act(Tensor x, OptTensor gamma, OptTensor beta, OptTensor mean, OptTensor var, double eps,
                  OptTensor residual, bool relu) {
  constexpr const char* op = "bn_add_act";
  check_activation(op, x);
  const BatchNorm bn{gamma, beta, mean, var, eps};
  check_batch_norm(op, bn, x.size(1), x);
  check_residual(op, residual, sizes_of(x), x);
  const DeviceGuard guard(x.get_device_index());
  const bool channels_last = suggests_channels_last(x);
  const Tensor out = aten_empty(sizes_of(x), x, channels_last);
  finish(out, aten_contiguous(x, channels_last), Vectors(bn, std::nullopt, x), residual, nullptr, relu, channels_last);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CUDA, m) {
  m.impl("conv_bn_act", TORCH_BOX(&conv_bn_act));
  m.impl("conv_bn_proj_act", TORCH_BOX(&conv_bn_proj_act));
  m.impl("conv_bn_relu_pool", TORCH_BOX(&conv_bn_relu_pool));
  m.impl("bn_add_act", TORCH_BOX(&bn_add_act));
}

}  // namespace resnet_fused::cuda
