// The shape of an NHWC activation for a tensor map. Pure: no torch, no CUDA.
#pragma once
#include "cuda/runtime/tensor_map.h"

namespace resnet_fused::cuda {

inline TensorShape nhwc_tensor(const void* base, Dtype dtype, int64_t n, int64_t h, int64_t w, int64_t c) {
  TensorShape x;
  x.base = base, x.dtype = dtype, x.rank = 4;
  const int64_t sizes[] = {c, w, h, n};
  int64_t stride = size_of(dtype);
  for (int i = 0; i < 4; ++i) {
    x.size[i] = sizes[i], x.stride[i] = stride;
    stride *= sizes[i];
  }
  return x;
}

}  // namespace resnet_fused::cuda
