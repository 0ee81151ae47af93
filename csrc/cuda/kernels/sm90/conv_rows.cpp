// What sm90/conv_rows tells the planner: what it runs, its tiles, and their times.
#include "cuda/kernels/sm90/conv_rows.h"

#include <algorithm>

#include "cuda/plan/planner.h"
#include "cuda/plan/words.h"

namespace resnet_fused::cuda {

namespace {

KernelFamily family(ConvMode) { return KernelFamily::kConvRows; }

std::string rejects(const Problem& p, const Device& device) {
  if (const std::string why = unsupported_conv(p, device); !why.empty()) return why;
  if (const std::string why = unsupported_by_wgmma(p, device); !why.empty()) return why;
  if (!(p.mode == ConvMode{})) return sentence("it has no ", name_of(p.mode));
  const ConvShape& q = p.main;
  if (conv_rows_takes(q)) return "";
  return sentence("the convolution is ", q.r, "x", q.s, " of ", q.c, " -> ", q.k, " channels, stride ", q.stride_h, "x",
                  q.stride_w, ", padding ", q.pad_h, "x", q.pad_w, ", dilation ", q.dil_h, "x", q.dil_w,
                  "; 3x3 of 64 -> 64, stride 1, padding 1, dilation 1 expected");
}

std::string tile_name(int32_t tile) { return sentence(kConvRowsTiles[tile].rows, "x", kConvRowsTiles[tile].columns); }

std::vector<Candidate> candidates(const Problem& p, const Device&) {
  std::vector<Candidate> all;
  for (const ConvRowsTile& tile : kConvRowsTiles) {
    Candidate c;
    c.engine = Engine::kSm90Rows;
    c.variant = {p.dtype, tile.rows, tile.columns, p.mode};
    c.tile = static_cast<int32_t>(&tile - kConvRowsTiles);
    c.tiles = conv_rows_tiles(tile, p.main);
    c.smem = conv_rows_smem(tile);
    all.push_back(c);
  }
  return all;
}

// Persistent blocks; a tile's epilogue overlaps the next tile's products.
void cost(Candidate& c, const Problem& p, const Model& model, int32_t) {
  const ConvRowsTile& tile = kConvRowsTiles[c.tile];
  const Family& family = model.family;
  const double products =
      1.0 * conv_rows_pixels(tile) * kConvRowsFilterBytes / size_of(p.dtype) / (family.macs * family.rows_share);
  const double loaded = kConvRowsPatches * conv_rows_patch_bytes(tile) + (p.residual ? conv_rows_out_bytes(tile) : 0);
  // Loads are written to shared memory. wgmma reads the filter, and each pixel for nine taps. The output is written and
  // read, the residual read.
  const double shared = kConvRowsFilterBytes + loaded + (9 + 2 + p.residual) * conv_rows_out_bytes(tile);
  const double rounds = static_cast<double>(ceil_div(c.tiles, model.device.sm_count));
  const double once = kFill + kSm90Epilogue + kConvRowsFilterBytes / family.l2;
  const double clocks = std::max({products, loaded / family.l2, shared / kHopperSmemClock});
  c.bytes = compulsory_bytes(p);
  const double work = (rounds * clocks + once) / family.clock;
  c.microseconds = (family.launch + std::max(c.bytes / model.dram(), work)) / 1e3;
}

}  // namespace

const Planner conv_rows_planner = {
    Engine::kSm90Rows,         Task::kConv,         "sm90:rows", family, rejects, tile_name,
    std::size(kConvRowsTiles), /*can_split=*/false, candidates,  cost};

}  // namespace resnet_fused::cuda
