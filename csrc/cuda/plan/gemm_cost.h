// The time of an implicit GEMM with mma.sync's tiles: of sm80/conv_fwd, and of cuDNN, which is modelled with the same
// tiles. Pure.
#pragma once
#include <algorithm>

#include "cuda/kernels/sm80/conv_fwd.h"
#include "cuda/plan/cost_model.h"

namespace resnet_fused::cuda {

inline int64_t steps(const ConvShape& q, Dtype dtype) {
  return ceil_div(int64_t{q.r} * q.s * q.c, conv_fwd_depth(dtype));
}

inline int64_t tiles_of(const ConvFwdTile& tile, const ConvShape& q) {
  return ceil_div(pixels(q), tile.m) * ceil_div(q.k, tile.n);
}

inline int32_t blocks_per_sm(const Model& model, const ConvFwdTile& tile, int32_t smem) {
  return std::max(1, std::min(model.device.smem_per_sm / (smem + kReservedSmem), kThreadsPerSm / tile.threads));
}

// `blocks` blocks of `steps` steps each, at `share` of the peak rate. The blocks of an SM share its tensor cores, so
// the SM with the most blocks finishes last. With few warps the tensor cores wait for copies. No step is faster than
// its copies from L2.
inline double multiply(const Model& model, const ConvFwdTile& tile, int32_t per_sm, int64_t blocks, double steps,
                       double share) {
  const Family& family = model.family;
  const int64_t busiest = ceil_div(blocks, model.device.sm_count);
  const double warps = std::min<int64_t>(busiest, per_sm) * tile.threads / 32;
  const double rate = family.macs * (model.dtype == Dtype::kFloat32 ? 0.5 : 1.0) * share *
                      std::min(1.0, kOneWarp + (1 - kOneWarp) * warps / kFullWarps);
  const double multiplications = 1.0 * tile.m * tile.n * conv_fwd_depth(model.dtype) / rate;
  const double copies = (tile.m + tile.n) * kConvFwdRowBytes / family.l2;
  const double clocks = busiest * steps * std::max(multiplications, copies) + ceil_div(busiest, per_sm) * kFill;
  return clocks / family.clock;
}

// Split-K: only if there are fewer tiles than SMs, with at most one part per step.
template <typename Body>
void for_each_split(int64_t tiles, int64_t depth, int32_t sm_count, int32_t forced, const Body& body) {
  if (forced) return body(static_cast<int32_t>(std::min<int64_t>(forced, depth)));
  body(1);
  if (tiles >= sm_count) return;
  for (const int32_t splits : kSplits)
    if (splits <= depth) body(splits);
}

}  // namespace resnet_fused::cuda
