#include "cuda/plan/explain.h"

#include "cuda/plan/words.h"

namespace resnet_fused::cuda {

namespace {

// Our pass that follows torch's convolution.
const char* pass_after(ConvMode mode) {
  return has_moments(mode) ? "bn_stats" : has_gradient_sums(mode) ? "bn_backward_reduce" : "bn_add_act";
}

// "sm80 128x64"; a block's tile depends on the image, so its name has the channels: "sm90:block 64".
std::string name_of(const Problem& p, const Candidate& c) {
  if (!is_kernel(c.engine)) return name_of(c.engine);
  if (p.task == Task::kBasicBlock) return sentence(name_of(c.engine), " ", p.main.c);
  return sentence(name_of(c.engine), " ", c.variant.tile_m, "x", c.variant.tile_n);
}

std::string line_of(const Problem& p, const Plan& c) {
  const std::string time = c.microseconds > 0 ? sentence(", ", c.microseconds, " us predicted") : "";
  if (c.engine == Engine::kTwoLaunches) return name_of(c.engine);
  if (c.engine == Engine::kTorch)
    return sentence("torch: convolution, then ", pass_after(p.mode), ", ", c.bytes, " bytes moved", time);
  if (p.task == Task::kBasicBlock)
    return sentence(name_of(p, c), ": ", name_of(p.dtype), ", ", c.tiles, " tiles of ", c.variant.tile_m, "x",
                    c.variant.tile_n, " pixels, ", c.smem, " bytes of shared memory, ", c.bytes, " bytes moved", time);
  const bool streamed = c.dp_tiles + c.sk_units > 0;
  const std::string depth =
      streamed ? sentence(c.dp_tiles, " data-parallel, ", c.tiles - c.dp_tiles, " in ", c.sk_units, " stream-K units, ")
               : sentence(c.splits, c.splits == 1 ? " split, " : " splits, ");
  return sentence(name_of(p, c), ": ", name_of(p.dtype), ", ", name_of(p.mode), ", ", c.tiles, " tiles of ", c.smem,
                  " bytes of shared memory, ", depth, c.workspace, " bytes of partial sums, ", c.bytes, " bytes moved",
                  time);
}

std::string occupancy(const Problem& p, const Candidate& c, int32_t sm_count) {
  const int64_t slices = c.splits == 1 ? 1 : c.splits + has_projection(p.mode), blocks = c.tiles * slices;
  const std::string all =
      c.splits > 1 ? sentence(blocks, " blocks with ", c.splits, " splits") : sentence(blocks, " blocks");
  if (blocks < sm_count) return sentence(all, " leave ", sm_count - blocks, " of ", sm_count, " SMs idle");
  return sentence(all, ", ", ceil_div(blocks, sm_count), " on the busiest of ", sm_count, " SMs");
}

std::string slower(const Problem& p, const Device& device, const Candidate& c) {
  const std::string time = sentence(c.microseconds, " us predicted");
  if (c.engine == Engine::kSm80) return sentence(occupancy(p, c, device.sm_count), ", ", time);
  if (c.passes > 0) return sentence(time, ", ", c.passes, " of them in an extra pass over activations");
  return time;
}

std::string reason_of(const Problem& p, const Device& device, const Rejected& r) {
  switch (r.why) {
    case Rejected::kUnsupported:
    case Rejected::kMissing:
      return r.detail;
    case Rejected::kSharedMemory:
      return sentence("a block needs ", r.candidate.smem, " bytes of shared memory; the limit is ",
                      device.smem_per_block);
    case Rejected::kWrong:
      return "it gave a wrong result in this process";
    case Rejected::kUnverified:
      return sentence(r.detail, "; RESNET_FUSED_CUDA_ENGINE=", name_of(r.candidate.engine), " enables it; ",
                      r.candidate.microseconds, " us predicted");
    case Rejected::kOverride:
      return sentence("RESNET_FUSED_CUDA_ENGINE is ", r.detail);
    case Rejected::kOtherTile:
      return "RESNET_FUSED_CUDA_ENGINE names another tile";
    case Rejected::kSlower:
      break;
  }
  return slower(p, device, r.candidate);
}

std::string name_of(const Problem& p, const Rejected& r) {
  return r.whole_engine ? std::string(name_of(r.candidate.engine)) : name_of(p, r.candidate);
}

const char* name_of(Rejected::Why why) {
  constexpr const char* kNames[] = {"unsupported", "missing",  "shared memory", "wrong",
                                    "unverified",  "override", "other tile",    "slower"};
  return kNames[why];
}

Fields fields_of(const Problem& p, const Candidate& c, bool whole_engine) {
  Fields f;
  f.add("kernel", !is_kernel(c.engine) ? name_of(c.engine) : name_of(family_of(c.engine, p.mode)));
  f.add("engine", name_of(c.engine));
  if (whole_engine) return f;
  f.add("name", name_of(p, c));
  if (is_kernel(c.engine)) {
    f.add("dtype", name_of(p.dtype)).add("mode", name_of(p.mode));
    f.add("tile_m", int64_t{c.variant.tile_m}).add("tile_n", int64_t{c.variant.tile_n});
    f.add("tiles", c.tiles).add("smem", int64_t{c.smem}).add("splits", int64_t{c.splits});
    f.add("dp_tiles", int64_t{c.dp_tiles}).add("sk_units", int64_t{c.sk_units}).add("workspace", c.workspace);
  }
  if (c.bytes) f.add("bytes", c.bytes);
  if (c.microseconds > 0) f.add("microseconds", c.microseconds);
  if (c.passes > 0) f.add("passes", c.passes);
  return f;
}

}  // namespace

const char* name_of(ConvMode mode) {
  switch (mode.epilogue) {
    case Epilogue::kProjection:
      return has_prologue(mode) ? "projection prologue" : "projection";
    case Epilogue::kMoments:
      return has_prologue(mode) ? "prologue statistics" : "statistics";
    case Epilogue::kGradientSums:
      return "gradient sums";
    case Epilogue::kAffine:
      break;
  }
  return has_prologue(mode) ? "prologue" : "plain";
}

std::string to_text(const Problem& problem, const Device& device, const Plan& plan,
                    const std::vector<Rejected>& rejected) {
  std::string text = line_of(problem, plan);
  for (const Rejected& r : rejected) text += "\n  not " + name_of(problem, r) + ": " + reason_of(problem, device, r);
  return text;
}

Fields to_fields(const Problem& problem, const Device& device, const Plan& plan,
                 const std::vector<Rejected>& rejected) {
  std::vector<Fields> others;
  for (const Rejected& r : rejected) {
    others.push_back(fields_of(problem, r.candidate, r.whole_engine));
    others.back().add("why", name_of(r.why)).add("reason", reason_of(problem, device, r));
  }
  Fields fields = fields_of(problem, plan, false);
  return fields.add("rejected", others);
}

}  // namespace resnet_fused::cuda
