// First-use check of unverified kernels: the op's result is compared with eager PyTorch's, once per compiled variant,
// device and process, and a wrong kernel is not used again (docs/architecture.md, Trust).
//
// plan_now and launch_checked decide before each launch whether the kernel may run; for a trusted kernel
// that costs one atomic load. FirstUse wraps the op: it compares the result if an unchecked kernel ran, and runs eager
// if a kernel may not run. The eager definitions are in resnet_fused/first_use.py.
#pragma once
#include <algorithm>
#include <array>
#include <optional>
#include <tuple>
#include <utility>

#include "common/torch_abi.h"
#include "cuda/kernels/kernels.h"
#include "cuda/plan/plan.h"
#include "cuda/plan/trust.h"

namespace resnet_fused::cuda {

// make_plan and kernel_of, cached: evaluating the cost model for every candidate takes longer than a launch.
// Thread-safe; holds a few hundred plans.
struct Planned {
  Plan plan;
  std::optional<KernelVariant> kernel;  // kernel_of(problem, plan)
};
Planned cached_plan(const Problem& problem, const Device& device, const Override& override);

// The plan to run now. Nothing can be compared during graph capture, so torch then replaces an unchecked kernel.
Plan plan_now(const Problem& problem, int device);

// Thrown by launch_checked if its kernel may not run; caught by FirstUse.
struct NoKernel {};

void launch_checked(const BnAddActParams& params, const Queue& queue, int device);
void launch_checked(const BnStatsParams& params, const Queue& queue, int device);
void launch_checked(const BnBackwardReduceParams& params, const Queue& queue, int device);
void launch_checked(const BnBackwardParams& params, const Queue& queue, int device);
void launch_checked(const BnPoolParams& params, const Queue& queue, int device);
void launch_checked(const PoolBackwardParams& params, const Queue& queue, int device);

// The unchecked kernels that an op has launched. If there are any, its result must be compared.
struct Unchecked {
  static constexpr int kMost = 8;

  KernelVariant kernels[kMost];
  int count, device;
};
void begin_op();                                   // on this thread
const Unchecked& launched_now();                   // since then
std::string to_string(const Unchecked& launched);  // one per line
// Applies Python's verdict: 0: not comparable, 1: right, 2: wrong. Returns whether the op may return its result.
bool judge(const Unchecked& launched, int64_t verdict);

inline StableIValue boxed(const Ints& ints) { return from(IntView(ints)); }
template <typename T>
StableIValue boxed(const T& value) {
  return from(value);
}

template <typename Result>
struct Results {
  static constexpr size_t kCount = 1;
  static Result take(StableIValue* stack) { return to<Result>(stack[0]); }
  static std::tuple<const Result&> all(const Result& result) { return std::tie(result); }
};
template <typename... Each>
struct Results<std::tuple<Each...>> {
  static constexpr size_t kCount = sizeof...(Each);
  static std::tuple<Each...> take(StableIValue* stack) { return take(stack, std::index_sequence_for<Each...>()); }
  static const std::tuple<Each...>& all(const std::tuple<Each...>& results) { return results; }

 private:
  template <size_t... kAt>
  static std::tuple<Each...> take(StableIValue* stack, std::index_sequence<kAt...>) {
    return {to<Each>(stack[kAt])...};
  }
};

// Op::name() is the op's name, "conv_bn_act" for one. run() has the signature of `function`, so TORCH_BOX works.
template <typename Op, typename Function, Function function>
struct FirstUse;
template <typename Op, typename Result, typename... Args, Result (*function)(Args...)>
struct FirstUse<Op, Result (*)(Args...), function> {
  static Result run(Args... args) {
    begin_op();
    try {
      Result result = function(args...);
      if (launched_now().count == 0) return result;
      const Unchecked launched = launched_now();  // Python may run other ops while it compares
      if (judge(launched, compare(result, launched, args...))) return result;
    } catch (const NoKernel&) {
    }
    return eager(args...);
  }

 private:
  static int64_t compare(const Result& result, const Unchecked& launched, const Args&... args) {
    return std::apply(
        [&](const auto&... each) {
          std::array<StableIValue, sizeof...(each) + 1 + sizeof...(Args)> stack{
              boxed(each)..., boxed(to_string(launched)), boxed(args)...};
          static const std::string op = std::string("resnet_fused::compare_") + Op::name();
          call_aten(op.c_str(), "", stack);
          return to<int64_t>(stack[0]);
        },
        Results<Result>::all(result));
  }

  static Result eager(const Args&... args) {
    constexpr size_t kStack = std::max(sizeof...(Args), Results<Result>::kCount);
    std::array<StableIValue, kStack> stack{boxed(args)...};
    static const std::string op = std::string("resnet_fused::eager_") + Op::name();
    call_aten(op.c_str(), "", stack);
    return Results<Result>::take(stack.data());
  }
};

// m.impl for an op whose kernels are checked.
#define IMPL_CHECKED(m, op)                                           \
  do {                                                                \
    struct Op {                                                       \
      static constexpr const char* name() { return #op; }             \
    };                                                                \
    m.impl(#op, TORCH_BOX((&FirstUse<Op, decltype(&op), &op>::run))); \
  } while (0)

}  // namespace resnet_fused::cuda
