#include "cuda/plan/plan.h"

#include "cuda/kernels/bn/bn_finish.h"
#include "cuda/plan/cost_model.h"

namespace resnet_fused::cuda {

namespace {

// A BasicBlock as two launches: the sums of both convolutions' plans.
void cost_of_two(Candidate& c, const Problem& p, const Model& model, const Override& override) {
  Problem conv = p;
  conv.task = Task::kConv;
  for (const bool residual : {false, true}) {
    conv.residual = residual;
    const Plan plan = make_plan(conv, model.device, override);
    c.bytes += plan.bytes;
    c.microseconds += plan.microseconds;
  }
}

const Planner two_launches_planner = {
    Engine::kTwoLaunches,
    Task::kBasicBlock,
    "two launches",
    /*family=*/nullptr,
    /*rejects=*/[](const Problem&, const Device&) { return std::string(); },
    /*tile_name=*/nullptr,
    /*named_tiles=*/0,
    /*can_split=*/false,
    [](const Problem&, const Device&) { return std::vector<Candidate>{Candidate{Engine::kTwoLaunches}}; },
    /*cost=*/nullptr,  // cost_of_two instead: it plans, which needs the override
};

// Whether a finishing kernel runs; bn_finish counts only if it merges parts first.
bool is_finished(const Problem& p, const Plan& plan) {
  if (!leaves_parts(p.mode)) return plan.splits > 1 || plan.sk_units > 0;
  return merges_first(ceil_div(pixels(p.main), plan.part));
}

KernelVariant kernel_of(const Planner& planner, const Problem& p, const Plan& c) {
  const bool block = p.task == Task::kBasicBlock;
  return {planner.family(p.mode), p.dtype, c.tile, block ? 0 : option_of(p.mode), !block && is_finished(p, c)};
}

class Choice {
 public:
  Choice(const Problem& problem, const Device& device, const Override& override, std::vector<Rejected>* rejected)
      : problem_(problem), device_(device), override_(override), model_(device, problem.dtype), rejected_(rejected) {}

  void consider(const Planner& planner) {
    const Candidate whole{planner.engine};
    if (const std::string why = planner.rejects(problem_, device_); !why.empty())
      return reject(whole, true, Rejected::kUnsupported, why);
    if (is_kernel(planner.engine)) accepted_ = true;
    if (is_excluded(override_, planner)) return reject(whole, true, Rejected::kOverride, to_string(override_));
    for (Candidate& c : planner.candidates(problem_, device_)) consider(planner, c);
  }

  Plan choose() {
    const auto competes = [&](const Offer& o) { return o.named || !any_named_; };
    const Offer* best = nullptr;
    for (const Offer& o : offers_)
      if (competes(o) && (!best || o.candidate.microseconds < best->candidate.microseconds)) best = &o;
    for (const Offer& o : offers_) {
      if (&o == best) continue;
      if (competes(o))
        reject(o.candidate, false, Rejected::kSlower, "");
      else
        reject(o.candidate, false, Rejected::kOverride, to_string(override_));
    }
    return best->candidate;
  }

 private:
  struct Offer {
    Candidate candidate;
    bool named;
  };

  void consider(const Planner& planner, Candidate& c) {
    const Match match = match_of(override_, planner, c.tile);
    if (match == Match::kOtherTile) return reject(c, false, Rejected::kOtherTile, "");
    if (c.missing) return reject(c, false, Rejected::kMissing, c.missing);
    if (c.smem > device_.smem_per_block) return reject(c, false, Rejected::kSharedMemory, "");
    if (!is_kernel(planner.engine)) {
      // Without a kernel there is nothing to compare torch with, and sizes may not even fit 64 bits.
      if (planner.task == Task::kBasicBlock)
        cost_of_two(c, problem_, model_, override_);
      else if (accepted_)
        planner.cost(c, problem_, model_, 0);
      else
        c.bytes = torch_bytes(problem_);
    } else {
      planner.cost(c, problem_, model_, match == Match::kNamed ? override_.splits : 0);
      const KernelVariant kernel = kernel_of(planner, problem_, c);
      if (is_refused(device_, kernel)) return reject(c, false, Rejected::kWrong, "");
      if (match == Match::kByDefault && !is_planned_by_default(kernel.family, device_.arch))
        return reject(c, false, Rejected::kUnverified, verified_words(kernel.family, device_.arch));
    }
    offers_.push_back({c, match == Match::kNamed});
    any_named_ |= match == Match::kNamed;
  }

  void reject(const Candidate& c, bool whole_engine, Rejected::Why why, const std::string& detail) {
    if (rejected_) rejected_->push_back({c, whole_engine, why, detail});
  }

  const Problem& problem_;
  const Device& device_;
  const Override& override_;
  const Model model_;
  std::vector<Rejected>* rejected_;
  std::vector<Offer> offers_;
  bool any_named_ = false, accepted_ = false;
};

}  // namespace

Plan make_plan(const Problem& problem, const Device& device, const Override& override,
               std::vector<Rejected>* rejected) {
  Choice choice(problem, device, override, rejected);
  for (const Planner* planner : planners())
    if (planner->task == problem.task) choice.consider(*planner);
  return choice.choose();
}

std::vector<Candidate> priced_candidates(const Planner& planner, const Problem& problem, const Model& model,
                                         const Override& override) {
  std::vector<Candidate> priced;
  if (!planner.rejects(problem, model.device).empty()) return priced;
  for (Candidate& c : planner.candidates(problem, model.device)) {
    if (c.missing || match_of(override, planner, c.tile) == Match::kOtherTile) continue;
    planner.cost(c, problem, model, override.splits);
    priced.push_back(c);
  }
  return priced;
}

const std::vector<const Planner*>& planners() {
  static const std::vector<const Planner*> all = {
      &block_fwd_planner,
#define ROW(engine, kernel) &kernel##_planner,
      CONV_KERNELS(ROW)
#undef ROW
          & torch_planner,
      &two_launches_planner,
  };
  return all;
}

const Planner& planner_of(Engine engine) {
  for (const Planner* planner : planners())
    if (planner->engine == engine) return *planner;
  return torch_planner;
}

const Planner* planner_of(KernelFamily family) {
  for (const Planner* planner : planners())
    for (const Epilogue epilogue :
         {Epilogue::kAffine, Epilogue::kProjection, Epilogue::kMoments, Epilogue::kGradientSums})
      if (is_kernel(planner->engine) && planner->family({Prologue::kNone, epilogue}) == family) return planner;
  return nullptr;
}

std::optional<KernelVariant> kernel_of(const Problem& problem, const Plan& plan) {
  const Planner& planner = planner_of(plan.engine);
  if (!is_kernel(planner.engine)) return std::nullopt;
  return kernel_of(planner, problem, plan);
}

const char* name_of(Engine engine) { return planner_of(engine).name; }

KernelFamily family_of(Engine engine, ConvMode mode) { return planner_of(engine).family(mode); }

}  // namespace resnet_fused::cuda
