// Element types of activations and weights. Pure: kernels include it too.
#pragma once
#include <cstdint>

namespace resnet_fused {

enum class Dtype : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64 };

constexpr Dtype kDtypes[] = {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16, Dtype::kFloat64};

constexpr int size_of(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

constexpr const char* name_of(Dtype dtype) {
  constexpr const char* kNames[] = {"float32", "float16", "bfloat16", "float64"};
  return kNames[static_cast<int32_t>(dtype)];
}

}  // namespace resnet_fused
