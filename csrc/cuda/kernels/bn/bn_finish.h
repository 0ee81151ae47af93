// bn_finish: adds the partial sums of all blocks. Pure: no torch, no CUDA.
#pragma once
#include "cuda/device/types.h"
#include "cuda/kernels/bn/reduction.h"

namespace resnet_fused::cuda {

// kMoments: `first` receives the mean, `second` the biased variance.
// kSums: `first` receives the sum of g, `second` the sum of g * (x - mean) / sqrt(var + eps).
struct BnFinishParams {
  BnParts parts;
  void* first = nullptr;  // (channels); float64 if the parts are, else float32
  void* second = nullptr;
  ChannelVector var;  // kSums only
  double eps = 0;     // kSums only
};

constexpr int32_t kFinishChannels = 8, kFinishRows = 32;  // a block reads 32 bytes of each of 32 parts at a time
constexpr int32_t kMostParts = 1024;                      // that one block adds, at most
constexpr int32_t kMergedParts = 256;                     // more parts than that are first merged, so many into one

// Whether parts are merged before they are added.
constexpr bool merges_first(int64_t parts) { return parts > kMostParts; }

// Bytes for the parts and for intermediate merges.
inline int64_t finish_workspace(BnParts p) {
  int64_t bytes = p.bytes();
  while (merges_first(p.parts)) {
    p.parts = (p.parts + kMergedParts - 1) / kMergedParts;
    bytes += p.bytes();
  }
  return bytes;
}

}  // namespace resnet_fused::cuda
