#include "cuda/plan_cache.h"

#include "cuda/exact_cache.h"

namespace resnet_fused::cuda {

namespace {

// All that make_plan reads, without padding.
struct PlanKey {
  ConvShape main, projection;
  Dtype dtype;
  ConvFwdMode mode;
  int64_t groups;
  uint8_t residual, aligned, allow_tf32, unused[5];
  Device device;
  EngineChoice choice;
};

// A field that is added to ConvProblem belongs into PlanKey too.
static_assert(sizeof(ConvProblem) == sizeof(Dtype) + 2 * sizeof(ConvShape) + sizeof(ConvFwdMode) + 8 + 8);

}  // namespace

ConvPlan cached_plan(const ConvProblem& p, const Device& device, const EngineChoice& choice) {
  static ExactCache<PlanKey, ConvPlan, 128> plans;
  const PlanKey key{p.main,    p.projection, p.dtype, p.mode, p.groups, p.residual,
                    p.aligned, p.allow_tf32, {},      device, choice};
  return plans.get(key, [&] { return make_plan(p, device, choice); });
}

}  // namespace resnet_fused::cuda
