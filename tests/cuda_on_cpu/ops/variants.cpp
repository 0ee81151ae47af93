// All compiled kernel variants, as distinguished by csrc/cuda/plan/trust.h.
#include <algorithm>
#include <stdexcept>

#include "bindings/library.h"
#include "cuda/kernels/kernels.h"
#include "cuda/plan/plan.h"
#include "ops/faults.h"

namespace cuda_on_cpu::bindings {

namespace {

using namespace resnet_fused::cuda;

using Variants = std::vector<std::pair<int32_t, std::string>>;

constexpr Device kH200{90, 132, 232448, 233472};

// A problem that all convolution kernels of the mode can run, or a block of `channels`.
Problem problem_of(Task task, Dtype dtype, ConvMode mode, int32_t channels) {
  Problem p;
  p.task = task;
  p.dtype = dtype;
  p.main = {2, 56, 56, channels, channels, 3, 3, 56, 56, 1, 1, 1, 1, 1, 1};
  p.projection = {2, 56, 56, channels, channels, 1, 1, 56, 56, 1, 1, 0, 0, 1, 1};
  p.mode = mode;
  return p;
}

bool is_compiled(Engine engine, const ConvFwdVariant& v) {
  const auto in = [&](const std::vector<ConvFwdVariant>& all) {
    return std::find(all.begin(), all.end(), v) != all.end();
  };
  switch (engine) {
#define COMPILED(engine, kernel) \
  case Engine::engine:           \
    return in(compiled_##kernel());
    CONV_KERNELS(COMPILED)
#undef COMPILED
    default:
      return false;
  }
}

// The kernels of the plans' candidates, with and without a finishing kernel if they can have one. Throws if one is not
// compiled in, or if its tile's name is not the candidate's.
size_t add_planned(const Problem& problem, Variants& all) {
  size_t added = 0;
  for (const Planner* planner : planners()) {
    if (!planner->family || planner->task != problem.task || !planner->rejects(problem, kH200).empty()) continue;
    for (Candidate& c : planner->candidates(problem, kH200)) {
      if (c.missing) continue;
      KernelVariant v = *kernel_of(problem, c);
      const std::string name = problem.task == Task::kBasicBlock
                                   ? std::to_string(problem.main.c) + " channels"
                                   : std::to_string(c.variant.tile_m) + "x" + std::to_string(c.variant.tile_n);
      if (c.tile >= KernelVariant::kShapes || planner->tile_name(c.tile) != name ||
          (problem.task == Task::kConv && !is_compiled(c.engine, c.variant)))
        throw std::logic_error(to_string(v) + " is planned as " + name);
      for (const bool finished : {false, true}) {
        if (finished && !planner->can_split) continue;
        v.finished = finished;
        all.emplace_back(v.index(), to_string(v));
      }
      ++added;
    }
  }
  return added;
}

// Index and name of each variant; both with and without its finishing kernel, if it can have one.
Variants variants() {
  Variants all;
  size_t planned = 0, blocks = 0;
  for (const Dtype dtype : {Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16}) {
    for (const Prologue prologue : {Prologue::kNone, Prologue::kBnRelu})
      for (const Epilogue epilogue :
           {Epilogue::kAffine, Epilogue::kProjection, Epilogue::kMoments, Epilogue::kGradientSums})
        if (prologue == Prologue::kNone || epilogue != Epilogue::kGradientSums)  // no op has both
          planned += add_planned(problem_of(Task::kConv, dtype, {prologue, epilogue}, 64), all);
    for (const int32_t channels : {64, 128})
      blocks += add_planned(problem_of(Task::kBasicBlock, dtype, {}, channels), all);
  }
  size_t compiled = 0;
#define COUNT(engine, kernel) compiled += compiled_##kernel().size();
  CONV_KERNELS(COUNT)
#undef COUNT
  if (planned != compiled || blocks != compiled_block_fwd().size())
    throw std::logic_error("variants: a compiled kernel is no candidate of any plan");

  const auto add = [&](const KernelVariant& v) { all.emplace_back(v.index(), to_string(v)); };
  for (const bool finished : {false, true}) {
    for (const BnStatsVariant& v : compiled_bn_stats()) add(variant_of_stats(v, finished));
    for (const BnGradientVariant& v : compiled_bn_backward_reduce()) add(variant_of_reduce(v, finished));
  }
  for (const BnAddActVariant& v : compiled_bn_add_act()) add(variant_of_add_act(v));
  for (const BnGradientVariant& v : compiled_bn_backward()) add(variant_of_backward(v));
  for (const PoolVariant& v : compiled_bn_pool()) add(variant_of_pool(v));
  for (const PoolVariant& v : compiled_pool_backward()) add(variant_of_pool_backward(v));
  return all;
}

const Binding bindings[] = {
    {"variants", &variants},
    {"most_variants", [] { return KernelVariant::kCount; }},
    {"set_fault", &set_fault},
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
