#include "cuda/ops/first_use.h"

#include "cuda/runtime/cache.h"
#include "cuda/runtime/device.h"

namespace resnet_fused::cuda {

namespace {

// Everything that planning reads, without padding. The number of refusals stands for a device's refused kernels. If
// Device or Override gains a field, its static_assert fails, if Problem does, cached_plan's declaration: add it here.
static_assert(sizeof(Device) == 24 && sizeof(Override) == 16);

struct Key {
  ConvShape main, projection;
  int32_t task, dtype;
  ConvMode mode;
  int64_t groups;
  int32_t residual, aligned, allow_tf32, unused;
  Device device;
  uint64_t refusals;
  int32_t override[4];
};

constexpr int64_t kRight = 1, kWrong = 2;

thread_local Unchecked launched{};

void note(const KernelVariant& v, int device) {
  for (int i = 0; i < launched.count; ++i)
    if (launched.kernels[i].index() == v.index()) return;
  RF_CHECK(launched.count < Unchecked::kMost, "first_use: an op launches more than ", Unchecked::kMost, " kernels");
  launched.kernels[launched.count++] = v;
  launched.device = device;
}

// Slow path of may_launch, for kernels that are not trusted yet and for kAlways.
bool may_launch_unknown(const KernelVariant& v, int device, CheckMode mode) {
  const Device& numbers = device_numbers(device);
  KernelStates& states = *numbers.states;
  if (states.of(v) == KernelStates::kRefused) return false;
  if (mode == CheckMode::kNever || verified_on(v.family, numbers.arch)) states.trust(v);
  const bool trusted = states.of(v) == KernelStates::kTrusted;
  if (trusted && mode != CheckMode::kAlways) return true;
  if (is_capturing(device)) return trusted;
  note(v, device);
  return true;
}

// Whether this kernel may run. An unchecked kernel is noted, to be compared before the op returns.
bool may_launch(const KernelVariant& v, int device) {
  const CheckMode mode = chosen_check();
  const bool trusted = device_numbers(device).states->of(v) == KernelStates::kTrusted;
  return (trusted && mode != CheckMode::kAlways) || may_launch_unknown(v, device, mode);
}

void demand(const KernelVariant& v, int device) {
  if (!may_launch(v, device)) throw NoKernel();
}

}  // namespace

Planned cached_plan(const Problem& p, const Device& device, const Override& o) {
  static ExactCache<Key, Planned, 128> plans;
  const auto& [task, dtype, main, projection, mode, groups, residual, aligned, allow_tf32] = p;
  const Key key{main,
                projection,
                static_cast<int32_t>(task),
                static_cast<int32_t>(dtype),
                mode,
                groups,
                residual,
                aligned,
                allow_tf32,
                0,
                device,
                device.states ? device.states->refusals() : 0,
                {o.kind, static_cast<int32_t>(o.engine), o.tile, o.splits}};
  return plans.get(key, [&]() -> Planned {
    const Plan plan = make_plan(p, device, o);
    return {plan, kernel_of(p, plan)};
  });
}

Plan plan_now(const Problem& problem, int device) {
  const Planned planned = cached_plan(problem, device_numbers(device), chosen_override());
  if (!planned.kernel || may_launch(*planned.kernel, device)) return planned.plan;
  Plan fallback;
  fallback.engine = problem.task == Task::kBasicBlock ? Engine::kTwoLaunches : Engine::kTorch;
  return fallback;
}

void launch_checked(const BnAddActParams& p, const Queue& queue, int device) {
  demand(variant_of_add_act(select_bn_add_act(p)), device);
  launch_bn_add_act(p, queue);
}

void launch_checked(const BnStatsParams& p, const Queue& queue, int device) {
  const BnStatsVariant v = select_bn_stats(p);
  demand(variant_of_stats(v, merges_first(parts_of(Parts::kMoments, p.shape, v.vector, queue.sm_count).parts)), device);
  launch_bn_stats(p, queue);
}

void launch_checked(const BnBackwardReduceParams& p, const Queue& queue, int device) {
  const BnGradientVariant v = select_bn_gradient(p.from, p.masked_grad);
  demand(variant_of_reduce(v, merges_first(parts_of(Parts::kSums, p.from.shape, v.vector, queue.sm_count).parts)),
         device);
  launch_bn_backward_reduce(p, queue);
}

void launch_checked(const BnBackwardParams& p, const Queue& queue, int device) {
  demand(variant_of_backward(select_bn_gradient(p.from, p.to)), device);
  launch_bn_backward(p, queue);
}

void launch_checked(const BnPoolParams& p, const Queue& queue, int device) {
  demand(variant_of_pool(select_bn_pool(p)), device);
  launch_bn_pool(p, queue);
}

void launch_checked(const PoolBackwardParams& p, const Queue& queue, int device) {
  demand(variant_of_pool_backward(select_pool_backward(p)), device);
  launch_pool_backward(p, queue);
}

void begin_op() { launched.count = 0; }

const Unchecked& launched_now() { return launched; }

std::string to_string(const Unchecked& all) {
  std::string lines;
  for (int i = 0; i < all.count; ++i) lines += (i ? "\n" : "") + to_string(all.kernels[i]);
  return lines;
}

bool judge(const Unchecked& all, int64_t verdict) {
  KernelStates& states = *device_numbers(all.device).states;
  for (int i = 0; i < all.count; ++i) {
    if (verdict == kRight) states.trust(all.kernels[i]);
    if (verdict == kWrong) states.refuse(all.kernels[i]);
  }
  return verdict == kRight;
}

}  // namespace resnet_fused::cuda
