#include "cpu/engines.h"

#include "cpu/bn_add_act.h"
#include "cpu/deferred.h"

namespace resnet_fused::cpu {

Element element_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return Element::kBFloat16;
    case ScalarType::Half:
      return Element::kFloat16;
    case ScalarType::Double:
      return Element::kFloat64;
    default:
      return Element::kFloat32;
  }
}

Engine engine_of(const Conv& q, const Pool* pool) {
  ConvShape shape{q.n,
                  q.c,
                  q.h,
                  q.w,
                  q.k,
                  q.r,
                  q.s,
                  q.oh,
                  q.ow,
                  q.stride[0],
                  q.stride[1],
                  q.padding[0],
                  q.padding[1],
                  q.dilation[0],
                  q.dilation[1],
                  q.groups,
                  element_of(scalar_type_of(q.x))};
  if (pool) shape.pool_r = pool->kernel[0], shape.pool_s = pool->kernel[1], shape.pool_stride_h = pool->stride[0];
  return make_plan(shape, cpu_features()).engine;
}

Conv without_pre(Conv conv) {
  if (conv.pre.present()) run_deferred();
  if (conv.pre.present()) conv.x = normalise(conv.x, conv.pre, std::nullopt, /*relu=*/true, /*internal=*/true);
  conv.pre = {};
  return conv;
}

}  // namespace resnet_fused::cpu
