#include "cpu/bn_add_act.h"

#include "cpu/bn_kernels.h"
#include "cpu/dispatch.h"
#include "cpu/memory.h"
#include "cpu/scale_shift.h"
#include "cpu/segments.h"

namespace resnet_fused::cpu {

namespace {

void add_into(const Tensor& out, const Tensor& x, const OptTensor& bias, const BatchNorm& bn, const OptTensor& other,
              const BatchNorm& other_bn, bool relu, bool channels_last) {
  dispatch(scalar_type_of(x), [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename AccType<T>::type;
    const BnKernels<T, Acc>& kernels = bn_kernels<T, Acc>();
    const auto ss = scale_shift<Acc>(bn, bias, x.size(1)),
               other_ss = scale_shift<Acc>(other_bn, std::nullopt, x.size(1));
    T* to = static_cast<T*>(out.mutable_data_ptr());
    const T *px = data<T>(x), *added = other ? data<T>(*other) : nullptr;
    for_each_block(x, channels_last, [&](int64_t at, int64_t channel, Block block) {
      Sum<T, Acc> sum{px + at, nullptr, ss.scale.data() + channel, ss.shift.data() + channel, nullptr, nullptr, relu};
      if (added) sum.other = added + at;
      if (other_bn.present()) {
        sum.other_scale = other_ss.scale.data() + channel;
        sum.other_shift = other_ss.shift.data() + channel;
      }
      kernels.apply(to + at, sum, block);
    });
  });
}

}  // namespace

void bn_add_act_into(const Tensor& out, const Tensor& x, const OptTensor& bias, const BatchNorm& bn,
                     const OptTensor& residual, bool relu, bool channels_last) {
  add_into(out, x, bias, bn, residual, {}, relu, channels_last);
}

void bn_add_bn_act_into(const Tensor& out, const Tensor& x, const BatchNorm& bn, const Tensor& shortcut,
                        const BatchNorm& shortcut_bn, bool relu, bool channels_last) {
  add_into(out, x, std::nullopt, bn, shortcut, shortcut_bn, relu, channels_last);
}

Tensor normalise(const Tensor& x, const BatchNorm& bn, const OptTensor& residual, bool relu, bool internal) {
  const bool channels_last = suggests_channels_last(x);
  OptTensor r;
  if (residual) r = aten_contiguous(*residual, channels_last);
  Tensor out = output_buffer(sizes_of(x), x, internal, channels_last);
  bn_add_act_into(out, aten_contiguous(x, channels_last), std::nullopt, bn, r, relu, channels_last);
  return out;
}

}  // namespace resnet_fused::cpu
