#include "cuda/plan/cost_model.h"

#include <algorithm>
#include <iterator>

#include "cuda/kernels/bn/reduction.h"
#include "cuda/plan/trust.h"

namespace resnet_fused::cuda {

namespace {

constexpr int64_t kMiB = 1 << 20;
constexpr int32_t kLoadsAtOnce = 4;  // partial tiles that conv_sm90_finish loads at once
// Tiles of cuDNN's Hopper kernels, from their names in profilers: sm90_xmma_fprop_implicit_gemm_..._256x128x64_
// warpgroupsize2x1x1, and ..._tilesize256x64x64. With our tiles, L2 would limit a convolution that reaches torch_share.
constexpr ConvFwdTile kCudnnHopperTiles[] = {{256, 128, 4, 384}, {256, 64, 4, 384}};
constexpr int32_t kSplits[] = {2, 3, 4, 6, 8, 12, 16};

// Values per channel in the part that a pixel tile stores.
int64_t part_values(ConvFwdMode mode) { return values_of(has_statistics(mode) ? Parts::kMoments : Parts::kSums); }

// Time to copy the forward filter: once to flip it (not for 1x1), once to transpose its channel dimensions.
double flip_time(const Model& model, const ConvProblem& p) {
  const int copies = p.main.r == 1 && p.main.s == 1 ? 1 : 2;
  return copies * model.pass(2 * weights(p.main, 1) * size_of(p.dtype));
}

// Elements of x that a tap reads. A strided 1x1 convolution skips some.
int64_t inputs(const ConvShape& q) {
  const int64_t rows = std::min<int64_t>(q.h, int64_t{q.p} * q.r), columns = std::min<int64_t>(q.w, int64_t{q.q} * q.s);
  return q.n * rows * columns * q.c;
}

int64_t steps(const ConvShape& q, Dtype dtype) { return ceil_div(int64_t{q.r} * q.s * q.c, conv_fwd_depth(dtype)); }

// Elements that the prologue, relu(pre(.)), computes.
int64_t prologue_elements(const ConvProblem& p) {
  if (!has_prologue(p.mode)) return 0;
  return inputs(has_projection(p.mode) ? p.projection : p.main);
}

// Split-K: only if there are fewer tiles than SMs, with at most one part per step.
template <typename Body>
void for_each_split(int64_t tiles, int64_t depth, int32_t sm_count, int32_t forced, const Body& body) {
  if (forced) return body(static_cast<int32_t>(std::min<int64_t>(forced, depth)));
  body(1);
  if (tiles >= sm_count) return;
  for (int32_t splits : kSplits)
    if (splits <= depth) body(splits);
}

// bn_finish after a kernel that stores one part of the statistics per `part` pixels.
double finish_parts(const Model& model, const ConvProblem& p, int64_t part) {
  if (!leaves_parts(p.mode)) return 0;
  return model.finish(part_values(p.mode) * ceil_div(pixels(p.main), part) * p.main.k * 4);
}

// Stream-K: tiles beyond the last full wave are cut into one unit per SM or a few units per tile. If
// forced, every tile is cut into that many parts (split-K).
template <typename Body>
void for_each_streamk(int64_t tiles, int64_t depth, int32_t sm_count, int32_t forced, const Body& body) {
  const auto cut = [&](int64_t dp_tiles, int64_t sk_units) {
    if (conv_sm90_units_fit((tiles - dp_tiles) * depth, sk_units)) body(dp_tiles, sk_units);
  };
  const int64_t sk_tiles = tiles % sm_count, parts = std::min<int64_t>(forced, depth);
  if (forced > 1 && conv_sm90_units_fit(tiles * depth, tiles * parts)) return body(0, tiles * parts);
  body(tiles, 0);
  if (sk_tiles == 0 || forced != 0) return;
  cut(tiles - sk_tiles, sm_count);
  for (int32_t splits : kSplits)
    if (sk_tiles * splits < sm_count) cut(tiles - sk_tiles, sk_tiles * splits);
}

}  // namespace

const Family& family_of(int32_t arch) {
  return *std::find_if(std::begin(kFamilies), std::end(kFamilies) - 1,
                       [&](const Family& f) { return arch >= f.oldest; });
}

Model::Model(const Device& device, Dtype dtype) : Model(device, dtype, family_of(device.arch)) {}
Model::Model(const Device& device, Dtype dtype, const Family& family) : device(device), family(family), dtype(dtype) {}

int32_t Model::blocks_per_sm(const ConvFwdTile& tile, int32_t smem) const {
  return std::max(1, std::min(device.smem_per_sm / (smem + kReservedSmem), kThreadsPerSm / tile.threads));
}

double Model::dram() const { return family.dram * device.sm_count; }
double Model::l2() const { return family.l2 * family.clock * device.sm_count; }

double Model::pass(int64_t bytes) const {
  return family.launch + bytes / (2 * bytes <= kMiB * family.l2_size ? l2() : dram());
}

// The blocks of an SM share its tensor cores, so the SM with the most blocks finishes last. With few warps the tensor
// cores wait for copies. No step is faster than its copies from L2.
double Model::multiply(const ConvFwdTile& tile, int32_t per_sm, int64_t blocks, double steps, double share) const {
  const int64_t busiest = ceil_div(blocks, device.sm_count);
  const double warps = std::min<int64_t>(busiest, per_sm) * tile.threads / 32;
  const double rate = family.macs * (dtype == Dtype::kFloat32 ? 0.5 : 1.0) * share *
                      std::min(1.0, kOneWarp + (1 - kOneWarp) * warps / kFullWarps);
  const double multiplications = 1.0 * tile.m * tile.n * conv_fwd_depth(dtype) / rate;
  const double copies = (tile.m + tile.n) * kConvFwdRowBytes / family.l2;
  const double clocks = busiest * steps * std::max(multiplications, copies) + ceil_div(busiest, per_sm) * kFill;
  return clocks / family.clock;
}

// Ping-pong warpgroups multiply during each other's epilogues; those that share a tile do not. Copies
// continue in both cases. Shares that are not aligned to tiles may span two tiles, and then write two partial tiles.
double Model::persist(const ConvSm90Tile& tile, const Sm90Work& work) const {
  const double products = 1.0 * tile.pixels * tile.channels * kConvSm90Depth / (family.macs * family.sm90_share);
  const double copies = (tile.pixels + tile.channels) * kConvSm90RowBytes / family.l2;
  const auto rounds = [this](int64_t items) { return static_cast<double>(ceil_div(items, device.sm_count)); };
  const double moments = has_statistics(work.mode) ? kMomentsOfValue * tile.pixels * tile.channels / kLanes : 0;
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
  return clocks / family.clock + pass(bytes);
}

double Model::persist(const ConvRowsTile& tile, int64_t tiles, bool residual) const {
  const double products =
      1.0 * conv_rows_pixels(tile) * kConvRowsFilterBytes / size_of(dtype) / (family.macs * family.rows_share);
  const double loaded = kConvRowsPatches * conv_rows_patch_bytes(tile) + (residual ? conv_rows_out_bytes(tile) : 0);
  // Loads are written to shared memory. wgmma reads the filter, and each pixel for nine taps. The output is written and
  // read, the residual read.
  const double shared = kConvRowsFilterBytes + loaded + (9 + 2 + residual) * conv_rows_out_bytes(tile);
  const double rounds = static_cast<double>(ceil_div(tiles, device.sm_count));
  const double once = kFill + kSm90Epilogue + kConvRowsFilterBytes / family.l2;
  const double clocks = std::max({products, loaded / family.l2, shared / kHopperSmemClock});
  return (rounds * clocks + once) / family.clock;
}

// Resident weights are loaded during the first tile, streamed ones again during every tile. The teams of an SM share
// its tensor cores and hide each other's epilogues, except the last one.
double Model::persist(const BlockFwdShape& s, int64_t tiles) const {
  const double filter = 1.0 * kBlockFwdTaps * s.channels * s.channels;  // of one convolution
  const double product = filter * (s.first + s.second) / (family.macs * family.sm90_share);
  const double landing = 2 * filter * size_of(dtype) / (s.cluster > 1 ? kPortBytesClock : family.l2);
  const double first = std::max(product, landing) + kBlockEpilogues;
  const double next = block_fwd_keeps_weights(s) ? product : first;
  const double busiest = static_cast<double>(ceil_div(tiles, block_fwd_most_blocks(s, device.sm_count)));
  return (kFill + first + (busiest - 1) * next) / family.clock;
}

double Model::finish(int64_t partial_bytes) const { return family.launch + 2 * partial_bytes / l2(); }

int64_t tiles_of(const ConvFwdTile& tile, const ConvShape& q) {
  return ceil_div(pixels(q), tile.m) * ceil_div(q.k, tile.n);
}

Candidate best_split(const Model& model, const ConvProblem& p, const ConvFwdTile& tile, int32_t smem,
                     int64_t compulsory, int32_t forced) {
  const int64_t tiles = tiles_of(tile, p.main), depth = steps(p.main, p.dtype);
  const bool projects = has_projection(p.mode);
  const int64_t projection_steps = projects ? steps(p.projection, p.dtype) : 0;
  const double main_step = has_prologue(p.mode) && !projects ? kPrologueStep : 1;
  const double projection_time = projection_steps * (p.mode == ConvFwdMode::kProjectionPrologue ? kPrologueStep : 1);
  const int32_t per_sm = model.blocks_per_sm(tile, smem);
  const double memory = compulsory / model.dram();
  Candidate best;
  // Moments and gradient sums need complete sums, so with split-K conv_finish would have to compute them. Where split-K
  // pays, the output is small and a separate pass over it is fast anyway.
  if (leaves_parts(p.mode)) forced = 1;
  for_each_split(tiles, depth, model.device.sm_count, forced, [&](int32_t splits) {
    const double main_time = ceil_div(depth, splits) * main_step;
    const int64_t slices = splits == 1 ? 1 : conv_fwd_slices(p.mode, splits);
    const double time = splits == 1 ? main_time + projection_time : std::max(main_time, projection_time);
    double ns = model.family.launch +
                std::max(memory, model.multiply(tile, per_sm, tiles * slices, time, model.family.sm80_share));
    if (splits > 1) ns += model.finish(slices * outputs(p.main) * 4);
    ns += finish_parts(model, p, tile.m);
    if (p.mode == ConvFwdMode::kGradientSums) ns += flip_time(model, p);
    if (ns < best.ns) best = {splits, ns};
  });
  return best;
}

Sm90Candidate best_sm90(const Model& model, const ConvProblem& p, const EngineChoice& choice, int32_t channels,
                        int64_t compulsory) {
  const bool asked = choice.kind == EngineChoice::kSm90;
  const int32_t forced = has_statistics(p.mode) ? 1 : asked ? choice.splits : 0;  // moments need complete sums
  int64_t depth = int64_t{p.main.r} * p.main.s * p.main.c / kConvSm90Depth;
  if (has_projection(p.mode)) depth += p.projection.c / kConvSm90Depth;
  Sm90Candidate best;
  for (const ConvSm90Tile& tile : kConvSm90Tiles) {
    if (asked && choice.tile_m && (tile.pixels != choice.tile_m || tile.channels != choice.tile_n)) continue;
    if (!conv_sm90_takes(tile, p.mode)) continue;
    if (is_refused(model.device, variant_of_sm90({p.dtype, tile.pixels, tile.channels, p.mode}, false))) continue;
    if (conv_sm90_smem(tile, p.mode, channels) > model.device.smem_per_block) continue;
    const int64_t rows =
        std::min<int64_t>(tile.pixels, ceil_div(pixels(p.main), kConvSm90FinishPixels) * kConvSm90FinishPixels);
    Sm90Work work{p.mode, conv_sm90_tiles(tile, p.main), depth, rows * tile.channels * 4, 0, 0};
    for_each_streamk(work.tiles, depth, model.device.sm_count, forced, [&](int64_t dp_tiles, int64_t sk_units) {
      work.dp_tiles = dp_tiles, work.sk_units = sk_units;
      const double ns = model.family.launch + std::max(compulsory / model.dram(), model.persist(tile, work)) +
                        finish_parts(model, p, conv_sm90_part(tile, p.mode));
      if (ns < best.ns) best = {&tile, static_cast<int32_t>(dp_tiles), static_cast<int32_t>(sk_units), ns};
    });
  }
  return best;
}

RowsCandidate best_rows(const Model& model, const ConvProblem& p, const EngineChoice& choice, int64_t compulsory) {
  RowsCandidate best;
  for (const ConvRowsTile& tile : kConvRowsTiles) {
    if (choice.rows && choice.tile_m && (tile.rows != choice.tile_m || tile.columns != choice.tile_n)) continue;
    if (conv_rows_smem(tile) > model.device.smem_per_block) continue;
    if (is_refused(model.device, variant_of_rows({p.dtype, tile.rows, tile.columns, p.mode}))) continue;
    const double work = model.persist(tile, conv_rows_tiles(tile, p.main), p.residual);
    const double ns = model.family.launch + std::max(compulsory / model.dram(), work);
    if (ns < best.ns) best = {&tile, ns};
  }
  return best;
}

double torch_convolution(const Model& model, const ConvShape& q, int64_t extra_bytes) {
  const int64_t bytes = size_of(model.dtype) * (inputs(q) + weights(q, 1) + outputs(q)) + extra_bytes;
  const int64_t depth = steps(q, model.dtype);
  double best = std::numeric_limits<double>::infinity();
  const auto consider = [&](const ConvFwdTile& tile) {
    const int64_t tiles = tiles_of(tile, q);
    const int32_t per_sm = model.blocks_per_sm(tile, conv_fwd_smem(tile, ConvFwdMode::kPlain, 0));
    for_each_split(tiles, depth, model.device.sm_count, 0, [&](int32_t splits) {
      const int64_t blocks = tiles * splits;
      double ns = model.multiply(tile, per_sm, blocks, ceil_div(depth, splits), model.family.torch_share);
      if (splits > 1) ns += model.finish(splits * outputs(q) * 4);
      best = std::min(best, ns);
    });
  };
  for (const ConvFwdTile& tile : kConvFwdTiles) consider(tile);
  if (model.family.sm90_share > 0)
    for (const ConvFwdTile& tile : kCudnnHopperTiles) consider(tile);
  return model.family.launch + std::max(bytes / model.dram(), best);
}

double torch_passes(const Model& model, const ConvProblem& p) {
  const int64_t size = size_of(p.dtype);
  if (p.mode == ConvFwdMode::kGradientSums) {
    const double added = p.residual ? model.pass(3 * outputs(p.main) * size) : 0;
    return added + model.pass(2 * outputs(p.main) * size) + model.finish(0);
  }
  const int64_t tensors = has_statistics(p.mode) ? 1 : 2 + (p.residual || has_projection(p.mode));
  double ns = model.pass(tensors * outputs(p.main) * size);
  if (has_prologue(p.mode)) ns += model.pass(2 * prologue_elements(p) * size);
  return ns;
}

int64_t compulsory_bytes(const ConvProblem& p) {
  const int64_t tensors = 1 + p.residual + (p.mode == ConvFwdMode::kGradientSums);
  int64_t elements = inputs(p.main) + weights(p.main, p.groups) + outputs(p.main) * tensors;
  if (has_projection(p.mode)) elements += inputs(p.projection) + weights(p.projection, 1);
  return elements * size_of(p.dtype);
}

// Each pre-BN output is written, then read by bn_add_act; a residual already counts as an input. bn_stats and
// bn_backward_reduce read the result again, and so does an addition before the latter, which also writes it.
int64_t torch_bytes(const ConvProblem& p, int64_t compulsory) {
  const int64_t read_again = p.mode == ConvFwdMode::kGradientSums && p.residual ? 3 : 1;
  const int64_t pre_bn = outputs(p.main) * (leaves_parts(p.mode) ? read_again : 2 + 2 * has_projection(p.mode));
  return compulsory + (pre_bn + 2 * prologue_elements(p)) * size_of(p.dtype);
}

}  // namespace resnet_fused::cuda
