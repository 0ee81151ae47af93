#include "cpu/engines.h"

#include "cpu/bn_add_act.h"
#include "cpu/deferred.h"

namespace resnet_fused::cpu {

ConvShape shape_of(const Conv& q, Purpose purpose) {
  ConvShape shape{q.n,          q.c,           q.h,           q.w,         q.k,           q.r,
                  q.s,          q.oh,          q.ow,          q.stride[0], q.stride[1],   q.padding[0],
                  q.padding[1], q.dilation[0], q.dilation[1], q.groups,    dtype_of(q.x), purpose};
  shape.x_nhwc = is_dense(q.x, /*channels_last=*/true);
  return q.flipped ? flipped(shape) : shape;
}

Plan plan_of(const Conv& conv, Purpose purpose) { return make_plan(shape_of(conv, purpose), cpu_features()); }

Engine engine_of(const Conv& conv, const MaxPool* pool) {
  ConvShape shape = shape_of(conv);
  if (pool) shape.pool_r = pool->kernel[0], shape.pool_s = pool->kernel[1], shape.pool_stride_h = pool->stride[0];
  return make_plan(shape, cpu_features()).engine;
}

FilterView filter_of(const Conv& conv) {
  const Tensor& w = conv.weight;
  FilterView view{w.const_data_ptr(), {w.stride(0), w.stride(1), w.stride(2), w.stride(3)}};
  if (!conv.flipped) return view;
  const int64_t last = (conv.r - 1) * view.strides[2] + (conv.s - 1) * view.strides[3];
  view.data = static_cast<const char*>(view.data) + last * static_cast<int64_t>(w.element_size());
  view.strides[2] *= -1, view.strides[3] *= -1;
  return view;
}

Conv without_pre(Conv conv) {
  if (conv.pre.present()) run_deferred();
  if (conv.pre.present()) conv.x = normalise(conv.x, conv.pre, std::nullopt, /*relu=*/true, /*internal=*/true);
  conv.pre = {};
  return conv;
}

}  // namespace resnet_fused::cpu
