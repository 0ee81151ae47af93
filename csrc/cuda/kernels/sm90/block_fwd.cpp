// What sm90/block_fwd tells the planner: which blocks it runs, and their times.
#include "cuda/kernels/sm90/block_fwd.h"

#include <algorithm>
#include <limits>

#include "cuda/plan/planner.h"
#include "cuda/plan/words.h"

namespace resnet_fused::cuda {

namespace {

KernelFamily family(ConvMode) { return KernelFamily::kBlockFwd; }

const BlockFwdShape* shape_for(int32_t channels) {
  for (const BlockFwdShape& s : kBlockFwdShapes)
    if (s.channels == channels) return &s;
  return nullptr;
}

std::string rejects(const Problem& p, const Device& device) {
  const ConvShape& q = p.main;
  if (const std::string why = unsupported_by_wgmma(p, device); !why.empty()) return why;
  if (q.n == 0 || q.h == 0 || q.w == 0) return "the output is empty";
  if (!p.aligned) return "a tensor is not 16-byte aligned";
  const BlockFwdShape* shape = shape_for(q.c);
  if (!shape) {
    std::string channels;
    for (const BlockFwdShape& s : kBlockFwdShapes) channels += sentence(channels.empty() ? "" : " or ", s.channels);
    return sentence("it has ", q.c, " channels; ", channels, " expected");
  }
  // The ops do not check this. With few channels there can be many pixels, and a tile may hold a single one.
  if (block_fwd_tiles(block_fwd_tiling(*shape, q.h, q.w), q.n) > std::numeric_limits<int32_t>::max() / 2)
    return "the number of tiles exceeds 31 bits";
  return "";
}

// The tile of pixels depends on the image.
std::string tile_name(int32_t tile) { return sentence(kBlockFwdShapes[tile].channels, " channels"); }

std::vector<Candidate> candidates(const Problem& p, const Device&) {
  const BlockFwdShape& shape = *shape_for(p.main.c);
  const BlockFwdTiling tiling = block_fwd_tiling(shape, p.main.h, p.main.w);
  Candidate c;
  c.engine = Engine::kSm90Block;
  c.variant = {p.dtype, tiling.rows, tiling.columns, {}};
  c.tile = static_cast<int32_t>(&shape - kBlockFwdShapes);
  c.tiles = block_fwd_tiles(tiling, p.main.n);
  c.smem = block_fwd_smem(shape);
  return {c};
}

// Each team of warpgroups has its own tile. Resident weights are loaded during the first tile, streamed ones again
// during every tile. The teams of an SM share its tensor cores and hide each other's epilogues, except the last one.
void cost(Candidate& c, const Problem& p, const Model& model, int32_t) {
  const BlockFwdShape& s = kBlockFwdShapes[c.tile];
  const Family& family = model.family;
  const double filter = 1.0 * kBlockFwdTaps * s.channels * s.channels;  // of one convolution
  const double product = filter * (s.first + s.second) / (family.macs * family.sm90_share);
  const double landing = 2 * filter * size_of(p.dtype) / (s.cluster > 1 ? kPortBytesClock : family.l2);
  const double first = std::max(product, landing) + kBlockEpilogues;
  const double next = block_fwd_keeps_weights(s) ? product : first;
  const double busiest = static_cast<double>(ceil_div(c.tiles, block_fwd_most_blocks(s, model.device.sm_count)));
  const ConvShape& q = p.main;
  c.bytes = 2 * (2 * int64_t{q.n} * q.h * q.w * q.c + 2 * int64_t{kBlockFwdTaps} * q.c * q.c);
  const double work = (kFill + first + (busiest - 1) * next) / family.clock;
  c.microseconds = (family.launch + std::max(c.bytes / model.dram(), work)) / 1e3;
}

}  // namespace

const Planner block_fwd_planner = {Engine::kSm90Block, Task::kBasicBlock, "sm90:block",        family,     rejects,
                                   tile_name,          /*named_tiles=*/0, /*can_split=*/false, candidates, cost};

}  // namespace resnet_fused::cuda
