#include "cuda/plan/block_plan.h"

#include <algorithm>
#include <limits>

#include "cuda/plan/cost_model.h"
#include "cuda/plan/sentence.h"
#include "cuda/plan/trust.h"

namespace resnet_fused::cuda {

namespace {

constexpr int32_t kHopper = 90;

const BlockFwdShape* shape_for(const BlockProblem& p, const Device& device, std::string* why) {
  const auto no = [why](const auto&... words) -> const BlockFwdShape* {
    if (why) *why = sentence(words...);
    return nullptr;
  };
  const ConvShape& q = p.conv;
  if (device.arch != kHopper) return no("the GPU is sm_", device.arch, "; wgmma and TMA need sm_90a");
  if (p.dtype != Dtype::kFloat16 && p.dtype != Dtype::kBFloat16) return no("it takes float16 and bfloat16");
  if (q.n == 0 || q.h == 0 || q.w == 0) return no("the output is empty");
  if (!p.aligned) return no("a tensor is not 16-byte aligned");
  std::string channels;
  for (const BlockFwdShape& s : kBlockFwdShapes) {
    if (s.channels == q.c) {
      const int32_t smem = block_fwd_smem(s);
      if (smem > device.smem_per_block)
        return no("a block needs ", smem, " bytes of shared memory; the limit is ", device.smem_per_block);
      // The ops do not check this. With few channels there can be many pixels, and a tile may hold a single one.
      if (block_fwd_tiles(block_fwd_tiling(s, q.h, q.w), q.n) > std::numeric_limits<int32_t>::max() / 2)
        return no("the number of tiles exceeds 31 bits");
      if (is_refused(device, variant_of_block({p.dtype, s.channels})))
        return no("it gave a wrong result in this process");
      return &s;
    }
    channels += sentence(channels.empty() ? "" : " or ", s.channels);
  }
  return no("it has ", q.c, " channels; ", channels, " expected");
}

}  // namespace

BlockPlan make_block_plan(const BlockProblem& problem, const Device& device, const EngineChoice& choice, Notes* notes) {
  const auto note = [notes](const auto&... words) {
    if (notes) notes->push_back(sentence("sm90 block: ", words...));
  };
  BlockPlan two;
  const bool asked =
      choice.kind == EngineChoice::kAll || (choice.kind == EngineChoice::kSm90 && !choice.tile_m) ||
      (choice.kind == EngineChoice::kModel && is_planned_by_default(KernelFamily::kBlockFwd, device.arch));
  if (!asked && !notes) return two;
  std::string why;
  const BlockFwdShape* shape = shape_for(problem, device, notes ? &why : nullptr);
  if (notes || (shape && asked && !choice.block)) {
    ConvProblem conv;
    conv.dtype = problem.dtype;
    conv.main = problem.conv;
    conv.aligned = problem.aligned;
    conv.allow_tf32 = problem.allow_tf32;
    for (const bool residual : {false, true}) {
      conv.residual = residual;
      const ConvPlan plan = make_plan(conv, device, choice);
      two.bytes += plan.bytes;
      two.microseconds += plan.microseconds;
    }
  }
  if (!shape) {
    note(why);
    return two;
  }

  BlockPlan one;
  const ConvShape& q = problem.conv;
  one.one_launch = true;
  one.variant = {problem.dtype, q.c};
  one.tiling = block_fwd_tiling(*shape, q.h, q.w);
  one.tiles = block_fwd_tiles(one.tiling, q.n);
  one.smem = block_fwd_smem(*shape);
  one.bytes = 2 * (2 * int64_t{q.n} * q.h * q.w * q.c + 2 * int64_t{kBlockFwdTaps} * q.c * q.c);
  const Model model(device, problem.dtype);
  one.microseconds = (model.family.launch + std::max(one.bytes / model.dram(), model.persist(*shape, one.tiles))) / 1e3;
  if (!asked && choice.kind == EngineChoice::kModel) {
    note(verified_words(KernelFamily::kBlockFwd, device.arch), "; RESNET_FUSED_CUDA_ENGINE=sm90 enables it; ",
         one.microseconds, " us predicted, two launches ", two.microseconds);
    return two;
  }
  if (!asked) {
    note("RESNET_FUSED_CUDA_ENGINE names another engine");
    return two;
  }
  if (!choice.block && one.microseconds > two.microseconds) {
    note(one.microseconds, " us predicted, and two launches ", two.microseconds);
    return two;
  }
  if (notes)
    notes->push_back(choice.block ? sentence("two launches: RESNET_FUSED_CUDA_ENGINE is sm90:block")
                                  : sentence("two launches: ", two.microseconds, " us predicted"));
  return one;
}

std::string to_string(const BlockPlan& plan) {
  if (!plan.one_launch) return "two launches";
  return sentence("sm90 block ", plan.variant.channels, ": ",
                  plan.variant.dtype == Dtype::kFloat16 ? "float16" : "bfloat16", ", ", plan.tiles, " tiles of ",
                  plan.tiling.rows, "x", plan.tiling.columns, " pixels, ", plan.smem, " bytes of shared memory, ",
                  plan.bytes, " bytes moved, ", plan.microseconds, " us predicted");
}

}  // namespace resnet_fused::cuda
