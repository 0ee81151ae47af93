// The candidate that always runs: PyTorch's convolution (cuDNN), and passes of ours around it.

#include "cuda/plan/cost_model.h"
#include "cuda/plan/gemm_cost.h"
#include "cuda/plan/planner.h"

namespace resnet_fused::cuda {

namespace {

// Tiles of cuDNN's Hopper kernels, from their names in profilers: sm90_xmma_fprop_implicit_gemm_..._256x128x64_
// warpgroupsize2x1x1, and ..._tilesize256x64x64. With our tiles, L2 would limit a convolution that reaches torch_share.
constexpr ConvFwdTile kCudnnHopperTiles[] = {{256, 128, 4, 384}, {256, 64, 4, 384}};

// Before the convolutions: bn_add_act if there is a prologue. After them: bn_add_act, or bn_stats for moments, or for
// gradient sums bn_backward_reduce, after an addition if there is a residual.
double passes(const Model& model, const Problem& p) {
  const int64_t size = size_of(p.dtype);
  if (has_gradient_sums(p.mode)) {
    const double added = p.residual ? model.pass(3 * outputs(p.main) * size) : 0;
    return added + model.pass(2 * outputs(p.main) * size) + model.finish(0);
  }
  const int64_t tensors = has_moments(p.mode) ? 1 : 2 + (p.residual || has_projection(p.mode));
  double ns = model.pass(tensors * outputs(p.main) * size);
  if (has_prologue(p.mode)) ns += model.pass(2 * prologue_elements(p) * size);
  return ns;
}

void cost(Candidate& c, const Problem& p, const Model& model, int32_t) {
  double ns = torch_convolution(model, p.main);
  if (has_projection(p.mode)) ns += torch_convolution(model, p.projection);
  c.passes = passes(model, p) / 1e3;
  c.bytes = torch_bytes(p);
  c.microseconds = (ns + passes(model, p)) / 1e3;
}

}  // namespace

double torch_convolution(const Model& model, const ConvShape& q, int64_t extra_bytes) {
  const int64_t bytes = size_of(model.dtype) * (inputs(q) + weights(q, 1) + outputs(q)) + extra_bytes;
  const int64_t depth = steps(q, model.dtype);
  double best = kNever;
  const auto consider = [&](const ConvFwdTile& tile) {
    const int64_t tiles = tiles_of(tile, q);
    const int32_t per_sm = blocks_per_sm(model, tile, conv_fwd_smem(tile, ConvMode{}, 0));
    for_each_split(tiles, depth, model.device.sm_count, 0, [&](int32_t splits) {
      const int64_t blocks = tiles * splits;
      double ns = multiply(model, tile, per_sm, blocks, ceil_div(depth, splits), model.family.torch_share);
      if (splits > 1) ns += model.finish(splits * outputs(q) * 4);
      best = std::min(best, ns);
    });
  };
  for (const ConvFwdTile& tile : kConvFwdTiles) consider(tile);
  if (model.family.sm90_share > 0)
    for (const ConvFwdTile& tile : kCudnnHopperTiles) consider(tile);
  return model.family.launch + std::max(bytes / model.dram(), best);
}

// Each pre-BN output is written, then read by bn_add_act; a residual already counts as an input. bn_stats and
// bn_backward_reduce read the result again, and so does an addition before the latter, which also writes it.
int64_t torch_bytes(const Problem& p) {
  const int64_t read_again = has_gradient_sums(p.mode) && p.residual ? 3 : 1;
  const int64_t pre_bn = outputs(p.main) * (leaves_parts(p.mode) ? read_again : 2 + 2 * has_projection(p.mode));
  return compulsory_bytes(p) + (pre_bn + 2 * prologue_elements(p)) * size_of(p.dtype);
}

const Planner torch_planner = {
    Engine::kTorch,
    Task::kConv,
    "torch",
    /*family=*/nullptr,
    /*rejects=*/[](const Problem&, const Device&) { return std::string(); },
    /*tile_name=*/nullptr,
    /*named_tiles=*/0,
    /*can_split=*/false,
    [](const Problem&, const Device&) { return std::vector<Candidate>{Candidate{Engine::kTorch}}; },
    cost,
};

}  // namespace resnet_fused::cuda
