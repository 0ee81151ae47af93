// bn_stats: mean and biased variance of each channel over N, H and W. Pure: no torch, no CUDA.
#pragma once
#include "cuda/kernels/bn/bn_finish.h"

namespace resnet_fused::cuda {

struct BnStatsParams {
  const void* x = nullptr;  // dense
  BnShape shape;
  void* workspace = nullptr;  // bn_stats_workspace() bytes
  void* mean = nullptr;       // (channels); float64 for float64 x, else float32
  void* var = nullptr;
};

// Identifies a compiled kernel.
struct BnStatsVariant {
  Dtype dtype;
  int32_t vector;  // elements per access: 16 bytes, or one element
  Layout layout;

  bool operator==(const BnStatsVariant& o) const {
    return dtype == o.dtype && vector == o.vector && layout == o.layout;
  }
};

inline BnStatsVariant select_bn_stats(const BnStatsParams& p) {
  return {p.shape.dtype, vector_of(p.shape, reinterpret_cast<uintptr_t>(p.x)), p.shape.layout};
}

inline int64_t bn_stats_workspace(const BnStatsParams& p, int sm_count) {
  return finish_workspace(parts_of(Parts::kMoments, p.shape, select_bn_stats(p).vector, sm_count));
}

}  // namespace resnet_fused::cuda
