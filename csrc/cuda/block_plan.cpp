#include "cuda/block_plan.h"

#include <algorithm>
#include <iomanip>
#include <limits>
#include <sstream>

namespace resnet_fused::cuda {

namespace {

// What the model believes of sm_90, an H200: plan.cpp's numbers for it. EVERY NUMBER IS AN UNMEASURED PREDICTION.
constexpr double kClock = 1.7;          // GHz under load
constexpr double kMacs = 2048 * 0.75;   // multiply-adds a clock and SM that wgmma reaches in our loop
constexpr double kL2BytesClock = 48;    // that L2 gives an SM in a clock
constexpr double kPortBytesClock = 64;  // that an SM takes of what a cluster brings together
constexpr double kDramBytesNs = 32;     // that memory gives an SM in a ns
constexpr double kLaunch = 2500;        // ns between the starts of two kernels that do nothing
constexpr double kFill = 1500;          // clocks: a block's first copies
constexpr double kEpilogues = 2000;     // clocks: both convolutions' of a tile that no other tile hides
constexpr int32_t kHopper = 90;

template <typename... Args>
std::string sentence(const Args&... args) {
  std::ostringstream s;
  (s << std::fixed << std::setprecision(1) << ... << args);
  return s.str();
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

const BlockFwdShape* shape_for(const BlockProblem& p, const Device& device, std::string* why) {
  const auto no = [why](const auto&... words) -> const BlockFwdShape* {
    if (why) *why = sentence(words...);
    return nullptr;
  };
  const ConvShape& q = p.conv;
  if (device.arch != kHopper) return no("the GPU is sm_", device.arch, ", and wgmma and TMA are sm_90a's");
  if (p.dtype != Dtype::kFloat16 && p.dtype != Dtype::kBFloat16) return no("it takes float16 and bfloat16");
  if (q.n == 0 || q.h == 0 || q.w == 0) return no("the output is empty");
  if (!p.aligned) return no("a tensor's address is no multiple of 16 bytes");
  std::string channels;
  for (const BlockFwdShape& s : kBlockFwdShapes) {
    if (s.channels == q.c) {
      const int32_t smem = block_fwd_smem(s);
      if (smem > device.smem_per_block)
        return no("a block wants ", smem, " bytes of shared memory, and may have ", device.smem_per_block);
      // Not among the checks of the ops: with few channels, many tiles may hold one pixel each.
      if (block_fwd_tiles(block_fwd_tiling(s, q.h, q.w), q.n) > std::numeric_limits<int32_t>::max() / 2)
        return no("there are more tiles than 31 bits count");
      return &s;
    }
    channels += sentence(channels.empty() ? "" : " or ", s.channels);
  }
  return no("it has ", q.c, " channels; ", channels, " expected");
}

// ns. Weights that stay come while the first tiles are multiplied, others with every tile. Teams of one SM share its
// tensor cores, and hide each other's epilogues but for the last.
double time_of(const BlockFwdShape& s, int64_t tiles, int64_t bytes, const Device& device) {
  const double weights = 1.0 * kBlockFwdTaps * s.channels * s.channels;  // of one convolution
  const double product = weights * (s.first + s.second) / kMacs;
  const double landing = 2 * weights * 2 / (s.cluster > 1 ? kPortBytesClock : kL2BytesClock);
  const double first = std::max(product, landing) + kEpilogues;
  const double next = block_fwd_keeps_weights(s) ? product : first;
  const double busiest = static_cast<double>(ceil_div(tiles, block_fwd_most_blocks(s, device.sm_count)));
  const double clocks = kFill + first + (busiest - 1) * next;
  return kLaunch + std::max(bytes / (kDramBytesNs * device.sm_count), clocks / kClock);
}

}  // namespace

BlockPlan make_block_plan(const BlockProblem& problem, const Device& device, const EngineChoice& choice, Notes* notes) {
  const auto note = [notes](const auto&... words) {
    if (notes) notes->push_back(sentence("sm90 block: ", words...));
  };
  BlockPlan two;
  std::string why;
  const BlockFwdShape* shape = shape_for(problem, device, notes ? &why : nullptr);
  const bool asked = choice.kind == EngineChoice::kAll || (choice.kind == EngineChoice::kSm90 && !choice.tile_m);
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
  one.microseconds = time_of(*shape, one.tiles, one.bytes, device) / 1e3;
  if (choice.kind == EngineChoice::kModel) {
    note("no GPU has run it yet, RESNET_FUSED_CUDA_ENGINE=sm90 does; ", one.microseconds,
         " us predicted, two launches ", two.microseconds);
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
