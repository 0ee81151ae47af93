// Element types of kernels. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda {

enum class Dtype : int32_t { kFloat32, kFloat16, kBFloat16, kFloat64 };

constexpr int size_of(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2; }

// size_of as a constant that device code can use too.
template <Dtype kDtype>
inline constexpr int kSizeOf = size_of(kDtype);

}  // namespace resnet_fused::cuda
