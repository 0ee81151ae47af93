// How a sum of each channel over N, H and W is shared among blocks: the shape and the GPU alone decide, and every part
// is added in its place, so that every run gives the same bits. Pure: no torch, no CUDA.
#pragma once
#include "cuda/bn/walk.h"

namespace resnet_fused::cuda {

// A block sums items [split * each, (split + 1) * each) of its lanes: one part of the sums of their channels.
struct BnReduction : BnWalk {
  uint32_t each;

  uint32_t parts() const { return splits; }
};

// 512 bytes of a row of channels: wide enough for memory, and the more rows a block has the fewer parts there are.
constexpr uint32_t kBnReductionLanes = 32;
constexpr uint32_t kBnReductionBlocksPerSm = 4;

inline BnReduction reduce_activations(const BnShape& s, int vector, int sm_count) {
  const auto ceil_div = [](uint32_t a, uint32_t b) { return (a + b - 1) / b; };
  const BnWalk walk = walk_activations(s, vector, kBnReductionLanes, sm_count * kBnReductionBlocksPerSm);
  BnReduction r{walk, 0};
  r.each = ceil_div(ceil_div(r.items, r.splits), r.slots) * r.slots;
  r.splits = ceil_div(r.items, r.each);
  return r;
}

// What a part has of each channel. kMoments: a center within the sample, the sum of the distances from it and of their
// squares, so that nothing cancels, whatever the mean. kSums: the sums of g and of g * (x - mean).
enum class Parts : int32_t { kMoments, kSums };

constexpr int32_t values_of(Parts what) { return what == Parts::kMoments ? 3 : 2; }

// (parts, values, channels), which bn_finish puts together. Part i is of elements [i * each, (i + 1) * each) of a
// channel's `total`.
struct BnParts {
  void* data = nullptr;  // float32, float64 of float64
  Parts what = Parts::kMoments;
  int32_t parts = 0, channels = 0;
  uint32_t each = 0, total = 0;
  Dtype dtype = Dtype::kFloat32;  // of the activations, and the reduced one that vectors may have

  int64_t bytes() const { return int64_t{values_of(what)} * parts * channels * (dtype == Dtype::kFloat64 ? 8 : 4); }
};

// The parts of a sum over `s`, which begin at `data`.
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
