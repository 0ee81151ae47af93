#include "cuda/ops/operands.h"

#include <algorithm>
#include <limits>

namespace resnet_fused::cuda {

namespace {

// Kernels read float32 and x's dtype. torch casts any other dtype; eager BatchNorm does not support such mixes at all.
OptTensor readable(const OptTensor& t, const Tensor& x) {
  if (!t || scalar_type_of(*t) == ScalarType::Float || scalar_type_of(*t) == scalar_type_of(x)) return t;
  return aten_to(*t, ScalarType::Float);
}

ChannelVector pointer(const OptTensor& t) {
  if (!t) return {};
  return {t->const_data_ptr(), t->stride(0), dtype_of(*t)};
}

Tensor filter_of(const Conv& conv) {
  return conv.flipped ? with_weight(conv).weight : aten_contiguous(conv.weight, true);
}

// A gradient's padding may be negative.
int32_t i32(int64_t v) {
  using Limits = std::numeric_limits<int32_t>;
  return static_cast<int32_t>(std::clamp<int64_t>(v, Limits::min(), Limits::max()));
}

}  // namespace

bool is_aligned(const Tensor& t) { return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0; }

ConvShape shape_of(const Conv& q) {
  return {i32(q.n),         i32(q.h),          i32(q.w),          i32(q.c),           i32(q.k),
          i32(q.r),         i32(q.s),          i32(q.oh),         i32(q.ow),          i32(q.stride[0]),
          i32(q.stride[1]), i32(q.padding[0]), i32(q.padding[1]), i32(q.dilation[0]), i32(q.dilation[1])};
}

Vectors::Vectors(const BatchNorm& bn, const OptTensor& bias, const Tensor& x)
    : held_{readable(bn.gamma, x), readable(bn.beta, x), readable(bn.mean, x), readable(bn.var, x), readable(bias, x)},
      eps_(bn.eps) {}

BatchNormVectors Vectors::pointers() const {
  return {pointer(held_[0]), pointer(held_[1]), pointer(held_[2]), pointer(held_[3]), pointer(held_[4]), eps_};
}

Operands::Operands(const Conv& conv)
    : x_(aten_contiguous(conv.x, true)),
      weight_(filter_of(conv)),
      pre_(conv.pre, std::nullopt, conv.x),
      bn_(conv.bn, conv.bias, conv.x),
      shape_(shape_of(conv)) {}

ConvOperands Operands::pointers() const {
  return {x_.const_data_ptr(), weight_.const_data_ptr(), shape_, pre_.pointers(), bn_.pointers()};
}

}  // namespace resnet_fused::cuda
