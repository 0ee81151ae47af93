// bn_finish: adds the partial sums of all blocks. Pure: no torch, no CUDA.
#pragma once
#include "cuda/batch_norm.h"
#include "cuda/bn/reduction.h"

namespace resnet_fused::cuda {

// Of moments the results are the mean and the biased variance; of sums their totals, the second divided by
// sqrt(var + eps).
struct BnFinishParams {
  BnParts parts;
  void* first = nullptr;  // (channels), float32 or float64 as the parts are
  void* second = nullptr;
  ChannelVector var;  // of sums
  double eps = 0;
};

constexpr int32_t kFinishChannels = 8, kFinishRows = 32;  // a block: 32 bytes of each of 32 parts at a time
constexpr int32_t kMostParts = 1024;                      // that one block adds up
constexpr int32_t kMergedParts = 256;                     // of more, so many become one first

// Bytes for the parts and for intermediate merges.
inline int64_t finish_workspace(BnParts p) {
  int64_t bytes = p.bytes();
  while (p.parts > kMostParts) {
    p.parts = (p.parts + kMergedParts - 1) / kMergedParts;
    bytes += p.bytes();
  }
  return bytes;
}

}  // namespace resnet_fused::cuda
