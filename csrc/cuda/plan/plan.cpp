#include "cuda/plan/plan.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <stdexcept>

#include "cuda/kernels/sm80/conv_fwd.h"
#include "cuda/kernels/sm90/conv_rows.h"
#include "cuda/kernels/sm90/conv_sm90.h"
#include "cuda/plan/cost_model.h"
#include "cuda/plan/names.h"
#include "cuda/plan/sentence.h"
#include "cuda/plan/trust.h"

namespace resnet_fused::cuda {

namespace {

constexpr int32_t kOldestArch = 80;
constexpr int32_t kHopper = 90;  // sm_90a's instructions exist only there
// Limits of a rank-4 im2col tensor map. Corners are signed bytes, offsets unsigned ones, but CUTLASS stops at 254.
constexpr int32_t kMostStride = 8, kLowestCorner = -128, kHighestCorner = 127, kMostOffset = 254;
constexpr int32_t kChannelMultiple = 8;

int32_t prologue_channels(const ConvProblem& p) { return has_projection(p.mode) ? p.projection.c : p.main.c; }

// Our pass that follows torch's convolution.
const char* pass_after(ConvFwdMode mode) {
  return has_statistics(mode) ? "bn_stats" : mode == ConvFwdMode::kGradientSums ? "bn_backward_reduce" : "bn_add_act";
}

// Whether conv_fwd takes one of the two convolutions. If not, *why gets the reason, unless `why` is null.
bool takes(const ConvShape& q, const char* which, std::string* why) {
  const auto no = [why](const auto&... words) {
    if (why) *why = sentence(words...);
    return false;
  };
  if (q.c % kChannelMultiple || q.k % kChannelMultiple)
    return no(which, " has ", q.c, " -> ", q.k, " channels; multiples of ", kChannelMultiple, " expected");
  if (q.r > kConvFwdMostTaps || q.s > kConvFwdMostTaps)
    return no(which, "'s filter is ", q.r, "x", q.s, ", more than ", kConvFwdMostTaps, " taps a side");
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t image = int64_t{q.n} * q.h * q.w;
  if (image > most / q.c || pixels(q) > most / q.k || weights(q, 1) > most)
    return no(which, " has ", image, "x", q.c, " inputs, ", pixels(q), "x", q.k, " outputs and ", weights(q, 1),
              " weights; offsets of 32 bits reach ", most);
  if (q.h + 2 * int64_t{q.pad_h} > most || q.w + 2 * int64_t{q.pad_w} > most)
    return no(which, " pads ", q.h, "x", q.w, " by ", q.pad_h, "x", q.pad_w, ", past coordinates of 32 bits");
  // Tap offsets are relative to a pixel's first tap, which may lie in the padding.
  const double rows = static_cast<double>(int64_t{q.n} * q.h + 2 * int64_t{q.pad_h});
  if ((rows * q.w + 2.0 * q.pad_w) * q.c > static_cast<double>(most))
    return no(which, " pads ", q.h, "x", q.w, "x", q.c, " by ", q.pad_h, "x", q.pad_w, ", past offsets of 32 bits");
  return true;
}

bool takes(const ConvProblem& p, const Device& device, std::string* why) {
  const auto no = [why](const auto&... words) {
    if (why) *why = sentence(words...);
    return false;
  };
  if (device.arch < kOldestArch)
    return no("the GPU is sm_", device.arch, "; the kernel needs at least sm_", kOldestArch);
  if (p.dtype == Dtype::kFloat64) return no("the kernel takes float16, bfloat16 and float32");
  if (p.dtype == Dtype::kFloat32 && !p.allow_tf32)
    return no("the kernel multiplies float32 as TF32, which torch's convolutions may not use here");
  if (p.groups != 1) return no("the convolution has ", p.groups, " groups");
  if (outputs(p.main) == 0) return no("the output is empty");
  if (std::min(p.main.pad_h, p.main.pad_w) < 0)
    return no("the forward convolution's padding exceeds its filter's reach");
  if (!p.aligned) return no("a tensor is not 16-byte aligned");
  return takes(p.main, "the convolution", why) &&
         (!has_projection(p.mode) || takes(p.projection, "the projection", why));
}

// Whether sm90/conv_sm90 takes one of the two convolutions, given that conv_fwd does.
bool takes_sm90(const ConvShape& q, const char* which, std::string* why) {
  const auto no = [why](const auto&... words) {
    if (why) *why = sentence(words...);
    return false;
  };
  if (q.c % kConvSm90Depth)
    return no(which, " has ", q.c, " input channels; a multiple of ", kConvSm90Depth, " expected");
  const int64_t reach[] = {int64_t{q.dil_h} * (q.r - 1), int64_t{q.dil_w} * (q.s - 1)}, pad[] = {q.pad_h, q.pad_w};
  for (int i = 0; i < 2; ++i)
    if (const int64_t lower = -pad[i], upper = pad[i] - reach[i];
        lower < kLowestCorner || upper < kLowestCorner || upper > kHighestCorner || reach[i] > kMostOffset)
      return no(which, "'s filter reaches ", reach[i], " pixels and its padding ", pad[i],
                ", past the window of a tensor map");
  if (std::max(q.stride_h, q.stride_w) > kMostStride)
    return no(which, " has strides of ", q.stride_h, "x", q.stride_w, "; a tensor map takes ", kMostStride, " at most");
  return true;
}

bool takes_sm90(const ConvProblem& p, const Device& device, std::string* why) {
  const auto no = [why](const auto&... words) {
    if (why) *why = sentence(words...);
    return false;
  };
  if (device.arch != kHopper) return no("the GPU is sm_", device.arch, "; wgmma and im2col TMA need sm_90a");
  if (p.dtype == Dtype::kFloat32) return no("the kernel has no TF32 wgmma");
  if (p.mode == ConvFwdMode::kGradientSums) return no("its epilogue does not sum gradients");
  return takes_sm90(p.main, "the convolution", why) &&
         (!has_projection(p.mode) || takes_sm90(p.projection, "the projection", why));
}

std::string occupancy(int64_t blocks, int32_t splits, int32_t sm_count) {
  const std::string all =
      splits > 1 ? sentence(blocks, " blocks with ", splits, " splits") : sentence(blocks, " blocks");
  if (blocks < sm_count) return sentence(all, " leave ", sm_count - blocks, " of ", sm_count, " SMs idle");
  return sentence(all, ", ", ceil_div(blocks, sm_count), " on the busiest of ", sm_count, " SMs");
}

KernelFamily sm90_family(const ConvProblem& p) {
  return has_statistics(p.mode) ? KernelFamily::kConvSm90Stats : KernelFamily::kConvSm90;
}

// Whether an sm90 family competes: on request, or if it is verified.
bool considers(const EngineChoice& choice, KernelFamily family, const Device& device) {
  return choice.kind == EngineChoice::kSm90 || choice.kind == EngineChoice::kAll ||
         (choice.kind == EngineChoice::kModel && is_planned_by_default(family, device.arch));
}

// The plan of sm90/conv_sm90 if it competes; else a note with the reason and its predicted time.
std::optional<ConvPlan> plan_sm90(const Model& model, const ConvProblem& problem, const EngineChoice& choice,
                                  int32_t channels, int64_t compulsory, Notes* notes) {
  const auto note = [notes](const auto&... words) {
    if (notes) notes->push_back(sentence(words...));
  };
  std::string why;
  if (!takes_sm90(problem, model.device, &why)) {
    note("sm90: ", why);
    return std::nullopt;
  }
  const Sm90Candidate best = best_sm90(model, problem, choice, channels, compulsory);
  if (!best.tile) {
    note("sm90: no tile ", choice.tile_m ? "of that size " : "",
         "supports this mode, fits in shared memory and gave no wrong result");
    return std::nullopt;
  }
  const ConvSm90Tile& tile = *best.tile;
  if (!considers(choice, sm90_family(problem), model.device)) {
    note("sm90 ", tile.pixels, "x", tile.channels, ": ", verified_words(sm90_family(problem), model.device.arch),
         "; RESNET_FUSED_CUDA_ENGINE=sm90 enables it; ", best.ns / 1e3, " us predicted");
    return std::nullopt;
  }
  ConvPlan plan;
  plan.engine = ConvEngine::kSm90;
  plan.variant = {problem.dtype, tile.pixels, tile.channels, problem.mode};
  plan.tiles = static_cast<int32_t>(conv_sm90_tiles(tile, problem.main));
  plan.smem = conv_sm90_smem(tile, problem.mode, channels);
  plan.dp_tiles = best.dp_tiles, plan.sk_units = best.sk_units;
  if (has_statistics(problem.mode)) plan.part = conv_sm90_part(tile, problem.mode);
  if (plan.sk_units)
    plan.workspace = conv_sm90_workspace(tile, problem.mode, plan.tiles - plan.dp_tiles, plan.sk_units);
  plan.bytes = compulsory + 2 * plan.workspace;
  plan.microseconds = best.ns / 1e3;
  return plan;
}

// Whether sm90/conv_rows takes the problem, given that conv_fwd does.
bool takes_rows(const ConvProblem& p, const Device& device, std::string* why) {
  const auto no = [why](const auto&... words) {
    if (why) *why = sentence(words...);
    return false;
  };
  if (device.arch != kHopper) return no("the GPU is sm_", device.arch, "; wgmma needs sm_90a");
  if (p.dtype == Dtype::kFloat32) return no("the kernel has no TF32 wgmma");
  if (p.mode != ConvFwdMode::kPlain) return no("it has no ", name_of(p.mode));
  const ConvShape& q = p.main;
  if (!conv_rows_takes(q))
    return no("the convolution is ", q.r, "x", q.s, " of ", q.c, " -> ", q.k, " channels, stride ", q.stride_h, "x",
              q.stride_w, ", padding ", q.pad_h, "x", q.pad_w, ", dilation ", q.dil_h, "x", q.dil_w,
              "; 3x3 of 64 -> 64, stride 1, padding 1, dilation 1 expected");
  return true;
}

// The plan of sm90/conv_rows if it competes and is named or faster than conv_sm90; else a note.
std::optional<ConvPlan> plan_rows(const Model& model, const ConvProblem& problem, const EngineChoice& choice,
                                  int32_t channels, int64_t compulsory, Notes* notes) {
  const auto note = [notes](const auto&... words) {
    if (notes) notes->push_back(sentence(words...));
  };
  std::string why;
  if (!takes_rows(problem, model.device, &why)) {
    note("sm90 rows: ", why);
    return std::nullopt;
  }
  const RowsCandidate best = best_rows(model, problem, choice, compulsory);
  if (!best.tile) {
    note("sm90 rows: no tile fits in ", model.device.smem_per_block,
         " bytes of shared memory and gave no wrong result");
    return std::nullopt;
  }
  const ConvRowsTile& tile = *best.tile;
  const std::string name = sentence("sm90 rows ", tile.rows, "x", tile.columns, ": ");
  if (!considers(choice, KernelFamily::kConvRows, model.device)) {
    note(name, verified_words(KernelFamily::kConvRows, model.device.arch),
         "; RESNET_FUSED_CUDA_ENGINE=sm90:rows enables it; ", best.ns / 1e3, " us predicted");
    return std::nullopt;
  }
  if (!choice.rows && considers(choice, sm90_family(problem), model.device)) {
    const Sm90Candidate other = best_sm90(model, problem, choice, channels, compulsory);
    if (choice.tile_m || other.ns < best.ns) {
      note(name, choice.tile_m ? "RESNET_FUSED_CUDA_ENGINE names another tile, " : "", best.ns / 1e3, " us predicted");
      return std::nullopt;
    }
    if (other.tile) note("sm90 ", other.tile->pixels, "x", other.tile->channels, ": ", other.ns / 1e3, " us predicted");
  }
  ConvPlan plan;
  plan.engine = ConvEngine::kSm90Rows;
  plan.variant = {problem.dtype, tile.rows, tile.columns, problem.mode};
  plan.tiles = static_cast<int32_t>(conv_rows_tiles(tile, problem.main));
  plan.smem = conv_rows_smem(tile);
  plan.bytes = compulsory;
  plan.microseconds = best.ns / 1e3;
  return plan;
}

const char* name_of(ConvEngine engine) {
  switch (engine) {
    case ConvEngine::kSm90Rows:
      return "sm90 rows ";
    case ConvEngine::kSm90:
      return "sm90 ";
    case ConvEngine::kSm80:
      return "sm80 ";
    case ConvEngine::kTorch:
      break;
  }
  return "torch";
}

}  // namespace

ConvPlan make_plan(const ConvProblem& problem, const Device& device, const EngineChoice& choice, Notes* notes) {
  const auto note = [notes](const auto&... words) {
    if (notes) notes->push_back(sentence(words...));
  };
  const int64_t compulsory = compulsory_bytes(problem);
  ConvPlan torch;
  torch.bytes = torch_bytes(problem, compulsory);
  torch.variant.mode = problem.mode;
  std::string why;
  if (!takes(problem, device, notes ? &why : nullptr)) {
    note("sm80: ", why);
    return torch;
  }
  const Model model(device, problem.dtype);
  double convolutions = torch_convolution(model, problem.main);
  if (has_projection(problem.mode)) convolutions += torch_convolution(model, problem.projection);
  const double passes = torch_passes(model, problem);
  torch.microseconds = (convolutions + passes) / 1e3;
  if (choice.kind == EngineChoice::kTorch) {
    note("sm80: RESNET_FUSED_CUDA_ENGINE is torch");
    return torch;
  }

  constexpr int kTiles = sizeof(kConvFwdTiles) / sizeof(kConvFwdTiles[0]);
  Candidate candidates[kTiles];
  // Clamped so that sizes do not overflow: more channels than bytes of shared memory never fit.
  const int32_t channels = std::min(prologue_channels(problem), device.smem_per_block);
  int best = 0;
  const auto wrong = [&](const ConvFwdTile& t) {
    return is_refused(device, variant_of_sm80({problem.dtype, t.m, t.n, problem.mode}, false));
  };
  const auto allowed = [&](const ConvFwdTile& t) {
    return choice.kind != EngineChoice::kSm80 || !choice.tile_m || (t.m == choice.tile_m && t.n == choice.tile_n);
  };
  for (int i = 0; i < kTiles; ++i) {
    const ConvFwdTile& tile = kConvFwdTiles[i];
    const int32_t smem = conv_fwd_smem(tile, problem.mode, channels);
    if (smem <= device.smem_per_block && allowed(tile) && !wrong(tile))
      candidates[i] = best_split(model, problem, tile, smem, compulsory, choice.splits);
    if (candidates[i].ns < candidates[best].ns) best = i;
  }
  const bool fits = candidates[best].ns < std::numeric_limits<double>::infinity();
  if (notes || considers(choice, KernelFamily::kConvRows, device) || considers(choice, sm90_family(problem), device)) {
    std::optional<ConvPlan> plan = plan_rows(model, problem, choice, channels, compulsory, notes);
    if (!plan && !choice.rows) plan = plan_sm90(model, problem, choice, channels, compulsory, notes);
    const double others = std::min(candidates[best].ns / 1e3, torch.microseconds);
    if (plan && choice.kind == EngineChoice::kSm90) {
      note("sm80 and torch: RESNET_FUSED_CUDA_ENGINE is sm90", choice.rows ? ":rows" : "");
      return *plan;
    }
    if (plan && plan->microseconds <= others) {
      note("sm80 and torch: ", others, " us predicted");
      return *plan;
    }
    if (plan)
      note(name_of(plan->engine), plan->variant.tile_m, "x", plan->variant.tile_n, ": ", plan->microseconds,
           " us predicted");
  }
  const bool kernel = fits && (choice.kind == EngineChoice::kSm80 || candidates[best].ns <= convolutions + passes);

  if (notes) {
    for (int i = 0; i < kTiles; ++i) {
      const ConvFwdTile& tile = kConvFwdTiles[i];
      if (kernel && i == best) continue;
      if (!allowed(tile)) {
        note("sm80 ", tile.m, "x", tile.n, ": RESNET_FUSED_CUDA_ENGINE names another tile");
        continue;
      }
      if (wrong(tile)) {
        note("sm80 ", tile.m, "x", tile.n, ": it gave a wrong result in this process");
        continue;
      }
      const int32_t smem = conv_fwd_smem(tile, problem.mode, channels);
      if (smem > device.smem_per_block) {
        note("sm80 ", tile.m, "x", tile.n, ": a block needs ", smem, " bytes of shared memory; the limit is ",
             device.smem_per_block);
        continue;
      }
      const int32_t splits = candidates[i].splits, slices = splits == 1 ? 1 : conv_fwd_slices(problem.mode, splits);
      note("sm80 ", tile.m, "x", tile.n, ": ",
           occupancy(tiles_of(tile, problem.main) * slices, splits, device.sm_count), ", ", candidates[i].ns / 1e3,
           " us predicted");
    }
    if (kernel && choice.kind == EngineChoice::kSm80)
      note("torch: RESNET_FUSED_CUDA_ENGINE is sm80");
    else if (kernel)
      note("torch: ", torch.microseconds, " us predicted, ", passes / 1e3,
           " of them in an extra pass over activations");
  }
  if (!kernel) return torch;

  const ConvFwdTile& tile = kConvFwdTiles[best];
  ConvPlan plan;
  plan.engine = ConvEngine::kSm80;
  plan.variant = {problem.dtype, tile.m, tile.n, problem.mode};
  plan.splits = candidates[best].splits;
  if (has_statistics(problem.mode)) plan.part = tile.m;
  plan.tiles = static_cast<int32_t>(tiles_of(tile, problem.main));
  plan.smem = conv_fwd_smem(tile, problem.mode, channels);
  if (plan.splits > 1) plan.workspace = conv_fwd_slices(problem.mode, plan.splits) * outputs(problem.main) * 4;
  plan.bytes = compulsory + 2 * plan.workspace;
  plan.microseconds = candidates[best].ns / 1e3;
  return plan;
}

std::string to_string(const ConvPlan& plan) {
  const std::string time = plan.microseconds > 0 ? sentence(", ", plan.microseconds, " us predicted") : "";
  if (plan.engine == ConvEngine::kTorch)
    return sentence("torch: convolution, then ", pass_after(plan.variant.mode), ", ", plan.bytes, " bytes moved", time);
  const ConvFwdVariant& v = plan.variant;
  const std::string depth =
      plan.engine == ConvEngine::kSm90
          ? sentence(plan.dp_tiles, " dp_tiles, ", plan.tiles - plan.dp_tiles, " in ", plan.sk_units, " sk_units, ")
          : sentence(plan.splits, plan.splits == 1 ? " split, " : " splits, ");
  return sentence(name_of(plan.engine), v.tile_m, "x", v.tile_n, ": ", name_of(v.dtype), ", ", name_of(v.mode), ", ",
                  plan.tiles, " tiles of ", plan.smem, " bytes of shared memory, ", depth, plan.workspace,
                  " bytes of partial sums, ", plan.bytes, " bytes moved", time);
}

}  // namespace resnet_fused::cuda
