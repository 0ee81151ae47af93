#include "cpu/bn_add_act.h"

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/isa.h"
#include "cpu/scale_shift.h"

namespace resnet_fused::cpu {

namespace {

// NaN passes through, as through torch.relu: NaN < 0 is false.
template <typename Acc>
inline Acc act(Acc v, bool relu) {
  return relu && v < Acc(0) ? Acc(0) : v;
}

// `count` elements whose channels run 0, 1, 2, ... (NHWC rows)
template <typename T, typename Acc>
inline __attribute__((always_inline)) void row_body(T* out, const T* x, const T* residual, const Acc* scale,
                                                    const Acc* shift, int64_t count, bool relu) {
  if (residual)
    for (int64_t k = 0; k < count; ++k) store(out + k, act(load(x[k]) * scale[k] + shift[k] + load(residual[k]), relu));
  else
    for (int64_t k = 0; k < count; ++k) store(out + k, act(load(x[k]) * scale[k] + shift[k], relu));
}

// `count` elements of one channel (an NCHW plane)
template <typename T, typename Acc>
inline __attribute__((always_inline)) void plane_body(T* out, const T* x, const T* residual, Acc scale, Acc shift,
                                                      int64_t count, bool relu) {
  if (residual)
    for (int64_t i = 0; i < count; ++i) store(out + i, act(load(x[i]) * scale + shift + load(residual[i]), relu));
  else
    for (int64_t i = 0; i < count; ++i) store(out + i, act(load(x[i]) * scale + shift, relu));
}

// The same with a BatchNorm on what is added; kPlane: one channel
template <bool kPlane, typename T, typename Acc>
inline __attribute__((always_inline)) void sum_body(T* out, const T* x, const T* shortcut, const Acc* scale,
                                                    const Acc* shift, const Acc* shortcut_scale,
                                                    const Acc* shortcut_shift, int64_t count, bool relu) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t k = kPlane ? 0 : i;
    const Acc other = load(shortcut[i]) * shortcut_scale[k] + shortcut_shift[k];
    store(out + i, act(load(x[i]) * scale[k] + shift[k] + other, relu));
  }
}

// target_clones wants plain functions: one pair a storage type.
#define DEFINE_KERNELS(T, Acc)                                                                                     \
  FOR_EVERY_ISA void row(T* out, const T* x, const T* residual, const Acc* scale, const Acc* shift, int64_t n,     \
                         bool relu) {                                                                              \
    row_body<T, Acc>(out, x, residual, scale, shift, n, relu);                                                     \
  }                                                                                                                \
  FOR_EVERY_ISA void plane(T* out, const T* x, const T* residual, Acc scale, Acc shift, int64_t n, bool relu) {    \
    plane_body<T, Acc>(out, x, residual, scale, shift, n, relu);                                                   \
  }                                                                                                                \
  FOR_EVERY_ISA void sum_row(T* out, const T* x, const T* shortcut, const ScaleShift<Acc>& bn,                     \
                             const ScaleShift<Acc>& other, int64_t n, bool relu) {                                 \
    sum_body<false>(out, x, shortcut, bn.scale.data(), bn.shift.data(), other.scale.data(), other.shift.data(), n, \
                    relu);                                                                                         \
  }                                                                                                                \
  FOR_EVERY_ISA void sum_plane(T* out, const T* x, const T* shortcut, const ScaleShift<Acc>& bn,                   \
                               const ScaleShift<Acc>& other, int64_t channel, int64_t n, bool relu) {              \
    sum_body<true>(out, x, shortcut, bn.scale.data() + channel, bn.shift.data() + channel,                         \
                   other.scale.data() + channel, other.shift.data() + channel, n, relu);                           \
  }
DEFINE_KERNELS(float, float)
DEFINE_KERNELS(double, double)
DEFINE_KERNELS(_Float16, float)
DEFINE_KERNELS(BFloat16, float)
#undef DEFINE_KERNELS

constexpr int64_t kGrain = 16384;  // elements a thread takes at least

// run(i, at): the i-th row (NHWC) or plane (NCHW), and the offset of its first element
template <typename Run>
void for_each_run(const Tensor& x, int64_t step, const Run& run) {
  torch::stable::parallel_for(0, x.numel() / step, std::max<int64_t>(1, kGrain / step),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) run(i, i * step);
                              });
}

}  // namespace

void bn_add_act_into(const Tensor& out, const Tensor& x, const OptTensor& bias, const BatchNorm& bn,
                     const OptTensor& residual, bool relu, bool channels_last) {
  const int64_t channels = x.size(1), area = x.size(2) * x.size(3);
  if (x.numel() == 0) return;
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename AccType<T>::type;
    const auto ss = scale_shift<Acc>(bn, bias, channels);
    T* po = static_cast<T*>(out.mutable_data_ptr());
    const T* px = data<T>(x);
    const T* pr = residual ? data<T>(*residual) : nullptr;
    const int64_t step = channels_last ? channels : area;
    for_each_run(x, step, [&](int64_t i, int64_t at) {
      const T* r = pr ? pr + at : nullptr;
      if (channels_last)
        row(po + at, px + at, r, ss.scale.data(), ss.shift.data(), channels, relu);
      else
        plane(po + at, px + at, r, ss.scale[i % channels], ss.shift[i % channels], area, relu);
    });
  });
}

void bn_add_bn_act_into(const Tensor& out, const Tensor& x, const BatchNorm& bn, const Tensor& shortcut,
                        const BatchNorm& shortcut_bn, bool relu, bool channels_last) {
  const int64_t channels = x.size(1), area = x.size(2) * x.size(3);
  if (x.numel() == 0) return;
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename AccType<T>::type;
    const auto ss = scale_shift<Acc>(bn, std::nullopt, channels);
    const auto other = scale_shift<Acc>(shortcut_bn, std::nullopt, channels);
    T* po = static_cast<T*>(out.mutable_data_ptr());
    const T *px = data<T>(x), *ps = data<T>(shortcut);
    for_each_run(x, channels_last ? channels : area, [&](int64_t i, int64_t at) {
      if (channels_last)
        sum_row(po + at, px + at, ps + at, ss, other, channels, relu);
      else
        sum_plane(po + at, px + at, ps + at, ss, other, i % channels, area, relu);
    });
  });
}

}  // namespace resnet_fused::cpu
