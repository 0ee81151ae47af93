// What sm90/conv_sm90 tells the planner: what it runs, its tiles, and their times.
#include "cuda/kernels/sm90/conv_sm90.h"

#include <algorithm>

#include "cuda/plan/planner.h"
#include "cuda/plan/words.h"

namespace resnet_fused::cuda {

namespace {

// Limits of a rank-4 im2col tensor map. Corners are signed bytes, offsets unsigned ones, but CUTLASS stops at 254.
constexpr int32_t kMostStride = 8, kLowestCorner = -128, kHighestCorner = 127, kMostOffset = 254;
constexpr int32_t kLoadsAtOnce = 4;  // partial tiles that conv_sm90_finish loads at once

KernelFamily family(ConvMode mode) {
  return has_moments(mode) ? KernelFamily::kConvSm90Stats : KernelFamily::kConvSm90;
}

std::string unsupported_shape(const ConvShape& q, const char* which) {
  if (q.c % kConvSm90Depth)
    return sentence(which, " has ", q.c, " input channels; a multiple of ", kConvSm90Depth, " expected");
  const int64_t reach[] = {int64_t{q.dil_h} * (q.r - 1), int64_t{q.dil_w} * (q.s - 1)}, pad[] = {q.pad_h, q.pad_w};
  for (int i = 0; i < 2; ++i)
    if (const int64_t lower = -pad[i], upper = pad[i] - reach[i];
        lower < kLowestCorner || upper < kLowestCorner || upper > kHighestCorner || reach[i] > kMostOffset)
      return sentence(which, "'s filter reaches ", reach[i], " pixels and its padding ", pad[i],
                      ", past the window of a tensor map");
  if (std::max(q.stride_h, q.stride_w) > kMostStride)
    return sentence(which, " has strides of ", q.stride_h, "x", q.stride_w, "; a tensor map takes ", kMostStride,
                    " at most");
  return "";
}

std::string rejects(const Problem& p, const Device& device) {
  if (const std::string why = unsupported_conv(p, device); !why.empty()) return why;
  if (const std::string why = unsupported_by_wgmma(p, device); !why.empty()) return why;
  if (has_gradient_sums(p.mode)) return "its epilogue does not sum gradients";
  const std::string why = unsupported_shape(p.main, "the convolution");
  return why.empty() && has_projection(p.mode) ? unsupported_shape(p.projection, "the projection") : why;
}

std::string tile_name(int32_t tile) {
  return sentence(kConvSm90Tiles[tile].pixels, "x", kConvSm90Tiles[tile].channels);
}

std::vector<Candidate> candidates(const Problem& p, const Device& device) {
  std::vector<Candidate> all;
  for (const ConvSm90Tile& tile : kConvSm90Tiles) {
    Candidate c;
    c.engine = Engine::kSm90;
    c.variant = {p.dtype, tile.pixels, tile.channels, p.mode};
    c.tile = static_cast<int32_t>(&tile - kConvSm90Tiles);
    if (!conv_sm90_takes(tile, p.mode)) c.missing = "the accumulators of this mode take too many registers";
    c.tiles = conv_sm90_tiles(tile, p.main);
    c.smem = conv_sm90_smem(tile, p.mode, prologue_channels(p, device));
    if (has_moments(p.mode)) c.part = conv_sm90_part(tile, p.mode);
    all.push_back(c);
  }
  return all;
}

// Ways to divide `tiles` of `depth` steps each. Tiles beyond the last full wave are cut into one stream-K unit per SM
// or a few units per tile. If forced, every tile is cut into that many parts (split-K).
template <typename Body>
void for_each_streamk(int64_t tiles, int64_t depth, int32_t sm_count, int32_t forced, const Body& body) {
  const auto cut = [&](int64_t dp_tiles, int64_t sk_units) {
    if (conv_sm90_units_fit((tiles - dp_tiles) * depth, sk_units)) body(dp_tiles, sk_units);
  };
  const int64_t rest = tiles % sm_count, parts = std::min<int64_t>(forced, depth);
  if (forced > 1 && conv_sm90_units_fit(tiles * depth, tiles * parts)) return body(0, tiles * parts);
  body(tiles, 0);
  if (rest == 0 || forced != 0) return;
  cut(tiles - rest, sm_count);
  for (const int32_t splits : kSplits)
    if (rest * splits < sm_count) cut(tiles - rest, rest * splits);
}

// One persistent block per SM runs data-parallel tiles, then stream-K units; conv_sm90_finish follows if there are any.
struct Work {
  ConvMode mode;
  int64_t tiles, steps;   // steps: per tile, including its projection
  int64_t partial_bytes;  // moved per partial tile
  int64_t dp_tiles, sk_units;
  int64_t sk_tiles() const { return tiles - dp_tiles; }
};

// Ping-pong warpgroups multiply during each other's epilogues; those that share a tile do not. Copies continue in both
// cases. Units that are not aligned to tiles may span two tiles, and then write two partial tiles.
double persist(const Model& model, const ConvSm90Tile& tile, const Work& work) {
  const Family& family = model.family;
  const double products = 1.0 * tile.pixels * tile.channels * kConvSm90Depth / (family.macs * family.sm90_share);
  const double copies = (tile.pixels + tile.channels) * kConvSm90RowBytes / family.l2;
  const auto rounds = [&](int64_t items) { return static_cast<double>(ceil_div(items, model.device.sm_count)); };
  const double moments = has_moments(work.mode) ? kMomentsOfValue * tile.pixels * tile.channels / kLanes : 0;
  const double epilogue = kSm90Epilogue + moments;
  const double multiplied = conv_sm90_pingpong(tile, work.mode) ? std::max(work.steps * products, epilogue)
                                                                : work.steps * products + epilogue;
  double clocks = rounds(work.dp_tiles) * std::max(multiplied, work.steps * copies) + kFill;
  if (!work.sk_units) return clocks / family.clock;
  const double longest = ceil_div(work.sk_tiles() * work.steps, work.sk_units);
  const double written = (work.sk_units % work.sk_tiles() ? 2 : 1) * work.partial_bytes / family.l2;
  clocks += rounds(work.sk_units) * (longest * std::max(products, copies) + written);
  clocks += ceil_div(ceil_div(work.sk_units, work.sk_tiles()) + 1, kLoadsAtOnce) * kL2Latency;
  const int64_t bytes = conv_sm90_partials(work.mode, work.sk_tiles(), work.sk_units) * work.partial_bytes;
  return clocks / family.clock + model.pass(bytes);
}

void cost(Candidate& c, const Problem& p, const Model& model, int32_t parts) {
  const ConvSm90Tile& tile = kConvSm90Tiles[c.tile];
  int64_t depth = int64_t{p.main.r} * p.main.s * p.main.c / kConvSm90Depth;
  if (has_projection(p.mode)) depth += p.projection.c / kConvSm90Depth;
  const int64_t rows =
      std::min<int64_t>(tile.pixels, ceil_div(pixels(p.main), kConvSm90FinishPixels) * kConvSm90FinishPixels);
  const int64_t compulsory = compulsory_bytes(p);
  Work work{p.mode, c.tiles, depth, rows * tile.channels * 4, 0, 0};
  double fastest = kNever;
  const int32_t forced = has_moments(p.mode) ? 1 : parts;  // moments need complete sums
  for_each_streamk(c.tiles, depth, model.device.sm_count, forced, [&](int64_t dp_tiles, int64_t sk_units) {
    work.dp_tiles = dp_tiles, work.sk_units = sk_units;
    const double ns = model.family.launch + std::max(compulsory / model.dram(), persist(model, tile, work)) +
                      model.finish_parts(p, conv_sm90_part(tile, p.mode));
    if (ns >= fastest) return;
    fastest = ns;
    c.dp_tiles = static_cast<int32_t>(dp_tiles), c.sk_units = static_cast<int32_t>(sk_units);
  });
  if (c.sk_units) c.workspace = conv_sm90_workspace(tile, p.mode, c.tiles - c.dp_tiles, c.sk_units);
  c.bytes = compulsory + 2 * c.workspace;
  c.microseconds = fastest / 1e3;
}

}  // namespace

const Planner conv_sm90_planner = {
    Engine::kSm90,      Task::kConv, "sm90", family, rejects, tile_name, std::size(kConvSm90Tiles),
    /*can_split=*/true, candidates,  cost};

}  // namespace resnet_fused::cuda
