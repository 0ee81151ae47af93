#include "cuda/runtime/plan_cache.h"

#include "cuda/plan/trust.h"
#include "cuda/runtime/cache.h"

namespace resnet_fused::cuda {

namespace {

// A key is everything that planning reads, without padding. The number of refusals stands for a device's refused
// kernels. If a struct gains a field, its static_assert fails: add the field to the key too.
static_assert(sizeof(Device) == 24 && sizeof(EngineChoice) == 24);
static_assert(sizeof(ConvProblem) == sizeof(Dtype) + 2 * sizeof(ConvShape) + sizeof(ConvFwdMode) + 16);
static_assert(sizeof(BlockProblem) == sizeof(Dtype) + sizeof(ConvShape) + 4);

struct Circumstances {
  Device device;
  uint64_t refusals;
  int32_t choice[6];
};

Circumstances circumstances(const Device& device, const EngineChoice& c) {
  return {
      device, device.states ? device.states->refusals() : 0, {c.kind, c.rows, c.tile_m, c.tile_n, c.splits, c.block}};
}

struct ConvKey {
  ConvShape main, projection;
  Dtype dtype;
  ConvFwdMode mode;
  int64_t groups;
  int32_t residual, aligned, allow_tf32, unused;
  Circumstances at;
};

struct BlockKey {
  ConvShape conv;
  Dtype dtype;
  int32_t aligned, allow_tf32;
  Circumstances at;
};

}  // namespace

ConvPlan cached_plan(const ConvProblem& p, const Device& device, const EngineChoice& choice) {
  static ExactCache<ConvKey, ConvPlan, 128> plans;
  const ConvKey key{p.main,     p.projection, p.dtype,      p.mode, p.groups,
                    p.residual, p.aligned,    p.allow_tf32, 0,      circumstances(device, choice)};
  return plans.get(key, [&] { return make_plan(p, device, choice); });
}

BlockPlan cached_block_plan(const BlockProblem& p, const Device& device, const EngineChoice& choice) {
  static ExactCache<BlockKey, BlockPlan, 32> plans;
  const BlockKey key{p.conv, p.dtype, p.aligned, p.allow_tf32, circumstances(device, choice)};
  return plans.get(key, [&] { return make_block_plan(p, device, choice); });
}

}  // namespace resnet_fused::cuda
