// A BatchNorm's arguments from Python values. Tensors are passed as addresses; the caller keeps them alive.
#pragma once
#include "bindings/library.h"
#include "cuda/kernels/bn/grid_stride.h"

namespace cuda_on_cpu::bindings {

// bn: gamma, beta, mean, var and bias, each as (address or 0, stride in elements, Dtype); then eps
inline resnet_fused::cuda::BatchNormVectors batch_norm_of(const Value& bn) {
  using namespace resnet_fused::cuda;
  BatchNormVectors v;
  ChannelVector* fields[] = {&v.gamma, &v.beta, &v.mean, &v.var, &v.bias};
  for (size_t i = 0; i < 5; ++i) {
    const auto [address, stride, dtype] = bn[i].as<std::tuple<uintptr_t, int64_t, int>>();
    *fields[i] = {reinterpret_cast<const void*>(address), stride, static_cast<Dtype>(dtype)};
  }
  v.eps = bn[5].as<double>();
  return v;
}

inline resnet_fused::cuda::BnShape bn_shape_of(const Value& d) {
  using namespace resnet_fused::cuda;
  return {static_cast<Dtype>(d["dtype"].as<int>()), d["channels_last"].as<bool>() ? Layout::kNHWC : Layout::kNCHW,
          d["batch"].as<int32_t>(), d["channels"].as<int32_t>(), d["area"].as<int32_t>()};
}

template <typename T>
T* pointer_of(const Value& d, const char* key) {
  return d.find(key) ? reinterpret_cast<T*>(d[key].as<uintptr_t>()) : nullptr;
}

}  // namespace cuda_on_cpu::bindings
