// max_pool2d(relu(bn(x))) in training, and its gradient: check, convert to NHWC, run.
#include "common/parallel.h"
#include "common/problem.h"
#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "cpu/pool_kernels.h"
#include "cpu/scale_shift.h"

namespace resnet_fused::cpu {

namespace {

PoolShape shape_of(const Tensor& x, IntView pooled, const MaxPool& pool) {
  const auto& [kernel, stride, padding] = pool;
  return {x.size(1), x.size(2), x.size(3), pooled[2],  pooled[3], kernel[0],
          kernel[1], stride[0], stride[1], padding[0], padding[1]};
}

// Calls run(begin, end) in parallel over rows of `width` pixels.
template <typename Run>
void for_rows(int64_t rows, int64_t width, int64_t channels, const Run& run) {
  constexpr int64_t kGrain = 16384;  // minimum elements per thread
  const int64_t row = std::max<int64_t>(1, width * channels);
  if (rows) parallel_for(0, rows, std::max<int64_t>(1, kGrain / row), run);
}

std::tuple<Tensor, Tensor> bn_relu_max_pool(Tensor x, OptTensor gamma, OptTensor beta, OptTensor mean, OptTensor var,
                                            double eps, Ints kernel, Ints stride, Ints padding, bool internal) {
  constexpr const char* op = "bn_relu_max_pool";
  const BatchNorm bn{gamma, beta, mean, var, eps};
  const MaxPool pool{kernel, stride, padding};
  check_pooled(op, x, bn, pool);
  const bool channels_last = suggests_channels_last(x);
  const Tensor dense = aten_contiguous(x, /*channels_last=*/true);
  const Ints sizes = pooled_sizes(x.sizes(), pool);
  const Tensor out = output_buffer(sizes, x, internal || is_copied(sizes, channels_last)),
               argmax = aten_empty(sizes, x, /*channels_last=*/true, ScalarType::Byte);
  const PoolShape shape = shape_of(x, sizes, pool);
  dispatch(scalar_type_of(x), [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename AccType<T>::type;
    const auto affine = scale_shift<Acc>(bn, std::nullopt, shape.channels);
    for_rows(x.size(0) * shape.oh, shape.ow, shape.channels, [&](int64_t begin, int64_t end) {
      pool_kernels<T, Acc>().forward(static_cast<T*>(out.mutable_data_ptr()),
                                     static_cast<uint8_t*>(argmax.mutable_data_ptr()), data<T>(dense),
                                     affine.scale.data(), affine.shift.data(), shape, begin, end);
    });
  });
  return {in_format(out, channels_last), in_format(argmax, channels_last)};
}

Tensor bn_relu_max_pool_backward(Tensor grad, Tensor argmax, Tensor x, Ints kernel, Ints stride, Ints padding,
                                 bool internal) {
  const MaxPool pool{kernel, stride, padding};
  check_pooled_gradient("bn_relu_max_pool_backward", grad, argmax, x, pool);
  const Tensor from = aten_contiguous(grad, /*channels_last=*/true), taps = aten_contiguous(argmax, true);
  const bool channels_last = suggests_channels_last(x);
  const Tensor to = output_buffer(sizes_of(x), x, internal || is_copied(x.sizes(), channels_last));
  const PoolShape shape = shape_of(x, grad.sizes(), pool);
  dispatch(scalar_type_of(x), [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename AccType<T>::type;
    for_rows(x.size(0) * shape.h, shape.w, shape.channels, [&](int64_t begin, int64_t end) {
      pool_kernels<T, Acc>().backward(static_cast<T*>(to.mutable_data_ptr()), data<T>(from),
                                      static_cast<const uint8_t*>(taps.const_data_ptr()), shape, begin, end);
    });
  });
  return in_format(to, channels_last);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(resnet_fused, CPU, m) {
  m.impl("bn_relu_max_pool", TORCH_BOX(&bn_relu_max_pool));
  m.impl("bn_relu_max_pool_backward", TORCH_BOX(&bn_relu_max_pool_backward));
}

}  // namespace resnet_fused::cpu
