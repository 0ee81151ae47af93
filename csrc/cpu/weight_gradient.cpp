#include <atomic>

#include "common/parallel.h"
#include "cpu/engines.h"
#include "cpu/memory.h"
#include "cpu/scale_shift.h"
#include "cpu/simd/kernels.h"

namespace resnet_fused::cpu {

namespace {

// Sums each part of the pixels and finishes the weight's channels; `blocks` of them, at least `grain` a task.
template <typename Kernels, typename Gradient>
bool sum_and_finish(const Kernels& kernels, Gradient& q, const Tensor& x, int64_t blocks, int64_t grain,
                    const Tensor& to) {
  const Tensor sums =
      output_buffer(Ints{q.parts, static_cast<int64_t>(sizeof(float) / x.element_size()), 1, q.part_floats}, x,
                    /*internal=*/true);
  q.sums = static_cast<float*>(sums.mutable_data_ptr());
  parallel_for(0, q.tasks, 1, [&](int64_t begin, int64_t end) { kernels.sum(q, begin, end); });
  const int64_t strides[4] = {to.stride(0), to.stride(1), to.stride(2), to.stride(3)};
  std::atomic<bool> finite{true};
  parallel_for(0, blocks, grain, [&](int64_t begin, int64_t end) {
    if (!kernels.finish(q, to.mutable_data_ptr(), strides, begin, end)) finite = false;
  });
  return finite;
}

}  // namespace

bool winograd_gradient(const Conv& conv, const Tensor& grad, const Tensor& to) {
  const Tensor x = aten_contiguous(conv.x, /*channels_last=*/true);
  const auto pre = scale_shift<float>(conv.pre, std::nullopt, conv.c);

  const Element element = element_of(scalar_type_of(x));
  const WinogradGradientKernels& kernels = kernels_of(element, isa_of(element, cpu_features())).winograd_gradient;
  WinogradGradient q{};
  q.x = x.const_data_ptr();
  if (conv.pre.present()) q.scale = pre.scale.data(), q.shift = pre.shift.data();
  q.grad = grad.const_data_ptr();
  q.n = narrow(conv.n), q.c = narrow(conv.c), q.h = narrow(conv.h), q.w = narrow(conv.w);
  q.k = narrow(conv.k), q.oh = narrow(conv.oh), q.ow = narrow(conv.ow);
  q.pad_h = narrow(conv.padding[0]), q.pad_w = narrow(conv.padding[1]);
  kernels.tile(q, static_cast<int>(torch::stable::get_num_threads()));
  return sum_and_finish(kernels, q, x, q.c, 16, to);
}

bool direct_gradient(const Conv& conv, const Tensor& grad, const Tensor& to) {
  const Element element = element_of(scalar_type_of(conv.x));
  const DirectGradientKernels& kernels = kernels_of(element, isa_of(element, cpu_features())).direct_gradient;
  if (!kernels.tile || conv.groups != 1 || grad.numel() == 0 || to.numel() == 0) return false;
  const Tensor x = aten_contiguous(conv.x, /*channels_last=*/true);
  auto pre = scale_shift<float>(conv.pre, std::nullopt, conv.c);
  pre.scale.resize(conv.c + 32), pre.shift.resize(conv.c + 32);

  DirectGradient q{};
  q.x = x.const_data_ptr();
  if (conv.pre.present()) q.scale = pre.scale.data(), q.shift = pre.shift.data();
  q.grad = grad.const_data_ptr();
  q.n = narrow(conv.n), q.c = narrow(conv.c), q.h = narrow(conv.h), q.w = narrow(conv.w);
  q.k = narrow(conv.k), q.r = narrow(conv.r), q.s = narrow(conv.s), q.oh = narrow(conv.oh), q.ow = narrow(conv.ow);
  q.stride_h = narrow(conv.stride[0]), q.stride_w = narrow(conv.stride[1]);
  q.pad_h = narrow(conv.padding[0]), q.pad_w = narrow(conv.padding[1]);
  q.dil_h = narrow(conv.dilation[0]), q.dil_w = narrow(conv.dilation[1]);
  if (!kernels.tile(q, static_cast<int>(torch::stable::get_num_threads()))) return false;
  return sum_and_finish(kernels, q, x, kernels.blocks(q), 1, to);
}

}  // namespace resnet_fused::cpu
