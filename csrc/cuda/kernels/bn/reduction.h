// Splits a sum of each channel over N, H and W among blocks. The split depends only on the shape and the GPU, and parts
// are added in a fixed order, so results are bit-reproducible. Pure: no torch, no CUDA.
#pragma once
#include "cuda/kernels/bn/grid_stride.h"

namespace resnet_fused::cuda {

// A block sums items [split * each, (split + 1) * each) of its lanes: one part of each of their channels.
struct BnReduction : GridStrideLoop {
  uint32_t each;

  uint32_t parts() const { return splits; }
};

// At most 512 contiguous bytes of a pixel's channels: wide enough for memory throughput. A narrower block covers more
// pixels, so there are fewer parts.
constexpr uint32_t kBnReductionLanes = 32;
constexpr uint32_t kBnReductionBlocksPerSm = 4;

inline BnReduction reduce_activations(const BnShape& s, int vector, int sm_count) {
  const auto ceil_div = [](uint32_t a, uint32_t b) { return (a + b - 1) / b; };
  const GridStrideLoop loop = loop_over_activations(s, vector, kBnReductionLanes, sm_count * kBnReductionBlocksPerSm);
  BnReduction r{loop, 0};
  r.each = ceil_div(ceil_div(r.items, r.splits), r.slots) * r.slots;
  r.splits = ceil_div(r.items, r.each);
  return r;
}

// Values of a part per channel. kMoments: a center within the sample, the sum of the distances from it, and the sum of
// their squares; nothing cancels, whatever the mean. kSums: the sums of g and of g * (x - mean).
enum class Parts : int32_t { kMoments, kSums };

constexpr int32_t values_of(Parts what) { return what == Parts::kMoments ? 3 : 2; }

// Partial sums, (parts, values, channels), which bn_finish adds. Part i covers elements [i * each, (i + 1) * each) of
// the `total` elements of a channel.
struct BnParts {
  void* data = nullptr;  // float64 for float64 activations, else float32
  Parts what = Parts::kMoments;
  int32_t parts = 0, channels = 0;
  uint32_t each = 0, total = 0;
  Dtype dtype = Dtype::kFloat32;  // of the activations; vectors have it or float32

  int64_t bytes() const { return int64_t{values_of(what)} * parts * channels * (dtype == Dtype::kFloat64 ? 8 : 4); }
};

// Describes the parts of a sum over `s`, stored at `data`.
inline BnParts parts_of(Parts what, const BnShape& s, int vector, int sm_count, void* data = nullptr) {
  BnParts p;
  p.data = data;
  p.what = what;
  p.channels = s.channels;
  p.dtype = s.dtype;
  p.total = s.batch * s.area;
  if (p.total == 0 || s.channels == 0) return p;
  const BnReduction r = reduce_activations(s, vector, sm_count);
  p.parts = r.parts();
  p.each = r.each * (s.layout == Layout::kNHWC ? 1 : vector);
  return p;
}

}  // namespace resnet_fused::cuda
