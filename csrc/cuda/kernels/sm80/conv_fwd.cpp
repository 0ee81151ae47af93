// What sm80/conv_fwd tells the planner: what it runs, its tiles, and their times.
#include <algorithm>

#include "cuda/plan/gemm_cost.h"
#include "cuda/plan/planner.h"
#include "cuda/plan/words.h"

namespace resnet_fused::cuda {

namespace {

KernelFamily family(ConvMode mode) {
  return has_moments(mode)         ? KernelFamily::kConvStats
         : has_gradient_sums(mode) ? KernelFamily::kConvGradient
                                   : KernelFamily::kConvFwd;
}

std::string tile_name(int32_t tile) { return sentence(kConvFwdTiles[tile].m, "x", kConvFwdTiles[tile].n); }

std::vector<Candidate> candidates(const Problem& p, const Device& device) {
  std::vector<Candidate> all;
  for (const ConvFwdTile& tile : kConvFwdTiles) {
    Candidate c;
    c.engine = Engine::kSm80;
    c.variant = {p.dtype, tile.m, tile.n, p.mode};
    c.tile = static_cast<int32_t>(&tile - kConvFwdTiles);
    c.tiles = tiles_of(tile, p.main);
    c.smem = conv_fwd_smem(tile, p.mode, prologue_channels(p, device));
    if (leaves_parts(p.mode)) c.part = tile.m;
    all.push_back(c);
  }
  return all;
}

// Time to copy the forward filter: once to flip it (not for 1x1), once to transpose its channel dimensions.
double flip_time(const Model& model, const Problem& p) {
  const int copies = p.main.r == 1 && p.main.s == 1 ? 1 : 2;
  return copies * model.pass(2 * weights(p.main, 1) * size_of(p.dtype));
}

// With the fastest number of splits. Moments and gradient sums need complete sums, so with split-K conv_finish would
// have to compute them. Where split-K pays, the output is small and a separate pass over it is fast anyway.
void cost(Candidate& c, const Problem& p, const Model& model, int32_t parts) {
  const ConvFwdTile& tile = kConvFwdTiles[c.tile];
  const bool projects = has_projection(p.mode);
  const int64_t depth = steps(p.main, p.dtype), projection_steps = projects ? steps(p.projection, p.dtype) : 0;
  const double main_step = has_prologue(p.mode) && !projects ? kPrologueStep : 1;
  const double projection_time = projection_steps * (has_prologue(p.mode) ? kPrologueStep : 1);
  const int32_t per_sm = blocks_per_sm(model, tile, c.smem);
  const int64_t compulsory = compulsory_bytes(p);
  const double memory = compulsory / model.dram();
  double fastest = kNever;
  for_each_split(c.tiles, depth, model.device.sm_count, leaves_parts(p.mode) ? 1 : parts, [&](int32_t splits) {
    const double main_time = ceil_div(depth, splits) * main_step;
    const int64_t slices = splits == 1 ? 1 : conv_fwd_slices(p.mode, splits);
    const double time = splits == 1 ? main_time + projection_time : std::max(main_time, projection_time);
    double ns = model.family.launch +
                std::max(memory, multiply(model, tile, per_sm, c.tiles * slices, time, model.family.sm80_share));
    if (splits > 1) ns += model.finish(slices * outputs(p.main) * 4);
    ns += model.finish_parts(p, tile.m);
    if (has_gradient_sums(p.mode)) ns += flip_time(model, p);
    if (ns < fastest) fastest = ns, c.splits = splits;
  });
  if (c.splits > 1) c.workspace = conv_fwd_slices(p.mode, c.splits) * outputs(p.main) * 4;
  c.bytes = compulsory + 2 * c.workspace;
  c.microseconds = fastest / 1e3;
}

}  // namespace

const Planner conv_fwd_planner = {
    Engine::kSm80,      Task::kConv, "sm80", family, unsupported_conv, tile_name, std::size(kConvFwdTiles),
    /*can_split=*/true, candidates,  cost};

}  // namespace resnet_fused::cuda
