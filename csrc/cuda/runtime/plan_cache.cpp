#include "cuda/runtime/plan_cache.h"

#include "cuda/plan/trust.h"
#include "cuda/runtime/cache.h"

namespace resnet_fused::cuda {

namespace {

// Everything that planning reads, without padding. The number of refusals stands for a device's refused kernels. If a
// struct gains a field, its static_assert fails: add the field to the key too.
static_assert(sizeof(Device) == 24 && sizeof(Override) == 24);
static_assert(sizeof(Problem) == 2 * sizeof(int32_t) + 2 * sizeof(ConvShape) + sizeof(ConvMode) + 16);

struct Key {
  ConvShape main, projection;
  int32_t task, dtype;
  ConvMode mode;
  int64_t groups;
  int32_t residual, aligned, allow_tf32, unused;
  Device device;
  uint64_t refusals;
  int32_t override[6];
};

}  // namespace

Plan cached_plan(const Problem& p, const Device& device, const Override& o) {
  static ExactCache<Key, Plan, 128> plans;
  const Key key{p.main,
                p.projection,
                static_cast<int32_t>(p.task),
                static_cast<int32_t>(p.dtype),
                p.mode,
                p.groups,
                p.residual,
                p.aligned,
                p.allow_tf32,
                0,
                device,
                device.states ? device.states->refusals() : 0,
                {o.kind, o.rows, o.tile_m, o.tile_n, o.splits, o.block}};
  return plans.get(key, [&] { return make_plan(p, device, o); });
}

}  // namespace resnet_fused::cuda
