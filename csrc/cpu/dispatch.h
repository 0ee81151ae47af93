// dispatch(dtype, f): f(T{}) with the C++ type that stores dtype.
#pragma once
#include <utility>

#include "common/torch_abi.h"
#include "cpu/scalar.h"

namespace resnet_fused::cpu {

template <typename F>
auto dispatch(ScalarType dtype, F&& f) {
  switch (dtype) {
    case ScalarType::Double:
      return f(double{});
    case ScalarType::Half:
      return f(_Float16{});
    case ScalarType::BFloat16:
      return f(BFloat16{});
    default:  // make_conv and bn_add_act reject every other type
      return f(float{});
  }
}

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

}  // namespace resnet_fused::cpu
