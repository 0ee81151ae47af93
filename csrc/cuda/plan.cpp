#include "cuda/plan.h"

#include <algorithm>
#include <cstdio>
#include <iomanip>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>

namespace resnet_fused::cuda {

namespace {

// What the model believes of a family of GPUs. EVERY NUMBER IS AN UNMEASURED PREDICTION: clocks, multipliers and
// caches are data sheets', the shares are estimates from published measurements of other people's kernels.
struct Family {
  int32_t oldest;         // arch
  double clock;           // GHz under load
  double macs;            // float16 multiply-adds a clock and SM with float32 sums; tf32 has half
  double sm80_share;      // of them that our main loop reaches with an SM full of warps
  double torch_share;     // of them that cuDNN's best kernel reaches likewise
  double sm90_share;      // of them that wgmma reaches in our loop; 0: no wgmma
  double l2_bytes_clock;  // that L2 gives an SM in a clock
  double dram_bytes_ns;   // that memory gives an SM in a ns, at 85 % of the data sheet's
  int64_t l2_size;        // bytes
};

constexpr int64_t kMiB = 1 << 20;
constexpr Family kFamilies[] = {
    // sm_120, RTX 5090: no wgmma and no tcgen05, so that cuDNN has no other instruction than we have
    {120, 2.4, 256, 0.75, 0.80, 0, 16, 9.0, 96 * kMiB},
    // sm_100, B200: mma.sync is taken to do as many multiplications a clock as on sm_90, a third of tcgen05's
    {100, 1.8, 4096, 0.23, 0.60, 0, 48, 46.0, 126 * kMiB},
    // sm_90, H200: mma.sync reaches about 0.62 of wgmma's rate, and our loop 0.75 of that; wgmma does 0.8 in a GEMM
    {90, 1.7, 2048, 0.46, 0.65, 0.75, 48, 32.0, 50 * kMiB},
    // sm_89, RTX 4090 and L4
    {89, 2.4, 256, 0.75, 0.80, 0, 16, 6.0, 48 * kMiB},
    // sm_86, RTX 3090 and A10
    {86, 1.7, 256, 0.75, 0.80, 0, 20, 9.0, 6 * kMiB},
    // sm_80, A100
    {80, 1.41, 1024, 0.65, 0.75, 0, 40, 15.0, 40 * kMiB},
};

constexpr double kLaunch = 2500;         // ns between the starts of two kernels that do nothing
constexpr double kFill = 1500;           // clocks: a block's first copies and its epilogue
constexpr double kSm90Epilogue = 1500;   // clocks: a tile's, of which the next tile's copies do not wait
constexpr double kFullWarps = 8;         // an SM reaches its share from this many warps on
constexpr double kOneWarp = 0.3;         // of the share that is left when there are next to none
constexpr double kPrologueStep = 1.25;   // a step's time when its pixels pass through registers first
constexpr int32_t kThreadsPerSm = 512;   // that fit with 128 registers each
constexpr int32_t kReservedSmem = 1024;  // bytes a block, taken by CUDA
constexpr int32_t kSplits[] = {2, 3, 4, 6, 8, 12, 16};

constexpr int64_t kMoments = 3;  // numbers that a tile of pixels leaves of each channel

constexpr int32_t kOldestArch = 80;
constexpr int32_t kHopper = 90;                                           // sm_90a's instructions exist there only
constexpr int32_t kMostStride = 8, kMostCorner = 128, kMostOffset = 255;  // of an im2col tensor map
constexpr int32_t kChannelMultiple = 8;

template <typename... Args>
std::string sentence(const Args&... args) {
  std::ostringstream s;
  (s << std::fixed << std::setprecision(1) << ... << args);
  return s.str();
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t pixels(const ConvShape& q) { return int64_t{q.n} * q.p * q.q; }
int64_t outputs(const ConvShape& q) { return pixels(q) * q.k; }
int64_t weights(const ConvShape& q, int64_t groups) { return int64_t{q.k} * (q.c / groups) * q.r * q.s; }

// Elements of x that a tap meets: a strided 1x1 convolution skips the rest.
int64_t inputs(const ConvShape& q) {
  const int64_t rows = std::min<int64_t>(q.h, int64_t{q.p} * q.r), columns = std::min<int64_t>(q.w, int64_t{q.q} * q.s);
  return q.n * rows * columns * q.c;
}

int64_t steps(const ConvShape& q, Dtype dtype) { return ceil_div(int64_t{q.r} * q.s * q.c, conv_fwd_depth(dtype)); }

int32_t prologue_channels(const ConvProblem& p) { return has_projection(p.mode) ? p.projection.c : p.main.c; }

const char* name_of(ConvFwdMode mode) {
  switch (mode) {
    case ConvFwdMode::kPrologue:
      return "prologue";
    case ConvFwdMode::kProjection:
      return "projection";
    case ConvFwdMode::kProjectionPrologue:
      return "projection prologue";
    case ConvFwdMode::kStatistics:
      return "statistics";
    case ConvFwdMode::kPrologueStatistics:
      return "prologue statistics";
    case ConvFwdMode::kPlain:
      break;
  }
  return "plain";
}

const char* name_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat16:
      return "float16";
    case Dtype::kBFloat16:
      return "bfloat16";
    case Dtype::kFloat64:
      return "float64";
    case Dtype::kFloat32:
      break;
  }
  return "float32";
}

// Whether the kernel takes one of the two convolutions; if not, *why is a sentence, unless it is null.
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
  return true;
}

bool takes(const ConvProblem& p, const Device& device, std::string* why) {
  const auto no = [why](const auto&... words) {
    if (why) *why = sentence(words...);
    return false;
  };
  if (device.arch < kOldestArch)
    return no("the GPU is sm_", device.arch, ", and the kernel's instructions came with sm_", kOldestArch);
  if (p.dtype == Dtype::kFloat64) return no("float64 has no such tensor cores; float16, bfloat16 and float32 have");
  if (p.dtype == Dtype::kFloat32 && !p.allow_tf32)
    return no("float32 would be multiplied as TF32, and torch's convolutions are not allowed to either");
  if (p.groups != 1) return no("the convolution has ", p.groups, " groups");
  if (outputs(p.main) == 0) return no("the output is empty");
  if (!p.aligned) return no("a tensor's address is no multiple of 16 bytes");
  return takes(p.main, "the convolution", why) &&
         (!has_projection(p.mode) || takes(p.projection, "the projection", why));
}

// Whether sm90/conv_sm90 takes one of the two convolutions, of those that conv_fwd takes.
bool takes_sm90(const ConvShape& q, const char* which, std::string* why) {
  const auto no = [why](const auto&... words) {
    if (why) *why = sentence(words...);
    return false;
  };
  if (q.c % kConvSm90Depth)
    return no(which, " has ", q.c, " input channels; a multiple of ", kConvSm90Depth, " expected");
  const int64_t reach[] = {int64_t{q.dil_h} * (q.r - 1), int64_t{q.dil_w} * (q.s - 1)}, pad[] = {q.pad_h, q.pad_w};
  for (int i = 0; i < 2; ++i)
    if (pad[i] > kMostCorner || reach[i] - pad[i] > kMostCorner || reach[i] > kMostOffset)
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
  if (device.arch != kHopper) return no("the GPU is sm_", device.arch, ", and wgmma and im2col TMA are sm_90a's");
  if (p.dtype == Dtype::kFloat32) return no("float32 would need wgmma of TF32, which this kernel has not");
  if (has_statistics(p.mode)) return no("its epilogue takes no statistics of what it stores");
  return takes_sm90(p.main, "the convolution", why) &&
         (!has_projection(p.mode) || takes_sm90(p.projection, "the projection", why));
}

struct Model {
  const Device& device;
  const Family& family;
  Dtype dtype;

  Model(const Device& device, Dtype dtype)
      : device(device),
        family(*std::find_if(std::begin(kFamilies), std::end(kFamilies) - 1,
                             [&](const Family& f) { return device.arch >= f.oldest; })),
        dtype(dtype) {}

  int32_t blocks_per_sm(const ConvFwdTile& tile, int32_t smem) const {
    return std::max(1, std::min(device.smem_per_sm / (smem + kReservedSmem), kThreadsPerSm / tile.threads));
  }

  // The whole GPU's, in bytes a ns.
  double dram() const { return family.dram_bytes_ns * device.sm_count; }
  double l2() const { return family.l2_bytes_clock * family.clock * device.sm_count; }

  // A pass over tensors that the kernel before it wrote.
  double pass(int64_t bytes) const { return kLaunch + bytes / (2 * bytes <= family.l2_size ? l2() : dram()); }

  // ns of `blocks` blocks of `steps` steps. Blocks of one SM share its tensor cores, so the SM with most blocks ends
  // last; few warps leave the tensor cores waiting for the copies, and no warp is faster than L2.
  double multiply(const ConvFwdTile& tile, int32_t per_sm, int64_t blocks, double steps, double share) const {
    const int64_t busiest = ceil_div(blocks, device.sm_count);
    const double warps = std::min<int64_t>(busiest, per_sm) * tile.threads / 32;
    const double rate = family.macs * (dtype == Dtype::kFloat32 ? 0.5 : 1.0) * share *
                        std::min(1.0, kOneWarp + (1 - kOneWarp) * warps / kFullWarps);
    const double multiplications = 1.0 * tile.m * tile.n * conv_fwd_depth(dtype) / rate;
    const double copies = (tile.m + tile.n) * kConvFwdRowBytes / family.l2_bytes_clock;
    const double clocks = busiest * steps * std::max(multiplications, copies) + ceil_div(busiest, per_sm) * kFill;
    return clocks / family.clock;
  }

  // ns of sm90/conv_sm90: a block an SM, tile after tile. Its two warpgroups share a tile, so nothing hides its
  // epilogue.
  double persist(const ConvSm90Tile& tile, int64_t tiles, int64_t steps) const {
    const double products = 1.0 * tile.pixels * tile.channels * kConvSm90Depth / (family.macs * family.sm90_share);
    const double copies = (tile.pixels + tile.channels) * kConvSm90RowBytes / family.l2_bytes_clock;
    const double rounds = static_cast<double>(ceil_div(tiles, device.sm_count));
    return (rounds * (steps * std::max(products, copies) + kSm90Epilogue) + kFill) / family.clock;
  }

  // Partial sums are written and read through L2, by a second kernel.
  double finish(int64_t partial_bytes) const { return kLaunch + 2 * partial_bytes / l2(); }
};

int64_t tiles_of(const ConvFwdTile& tile, const ConvShape& q) {
  return ceil_div(pixels(q), tile.m) * ceil_div(q.k, tile.n);
}

// Depth is split only where there are fewer tiles than SMs, and into as many parts as there are steps at most.
template <typename Body>
void for_each_split(int64_t tiles, int64_t depth, int32_t sm_count, int32_t forced, const Body& body) {
  if (forced) return body(static_cast<int32_t>(std::min<int64_t>(forced, depth)));
  body(1);
  if (tiles >= sm_count) return;
  for (int32_t splits : kSplits)
    if (splits <= depth) body(splits);
}

struct Candidate {
  int32_t splits = 1;
  double ns = std::numeric_limits<double>::infinity();
};

Candidate best_split(const Model& model, const ConvProblem& p, const ConvFwdTile& tile, int32_t smem,
                     int64_t compulsory, int32_t forced) {
  const int64_t tiles = tiles_of(tile, p.main), depth = steps(p.main, p.dtype);
  const bool projects = has_projection(p.mode);
  const int64_t side = projects ? steps(p.projection, p.dtype) : 0;
  const double main_step = has_prologue(p.mode) && !projects ? kPrologueStep : 1;
  const double side_time = side * (p.mode == ConvFwdMode::kProjectionPrologue ? kPrologueStep : 1);
  const int32_t per_sm = model.blocks_per_sm(tile, smem);
  const double memory = compulsory / model.dram();
  Candidate best;
  // Statistics are of whole sums: conv_finish would have to take them, and where the depth is worth splitting the
  // output is small, and bn_stats fast.
  if (has_statistics(p.mode)) forced = 1;
  for_each_split(tiles, depth, model.device.sm_count, forced, [&](int32_t splits) {
    const double main_time = ceil_div(depth, splits) * main_step;
    const int64_t slices = splits == 1 ? 1 : conv_fwd_slices(p.mode, splits);
    const double time = splits == 1 ? main_time + side_time : std::max(main_time, side_time);
    double ns = kLaunch + std::max(memory, model.multiply(tile, per_sm, tiles * slices, time, model.family.sm80_share));
    if (splits > 1) ns += model.finish(slices * outputs(p.main) * 4);
    if (has_statistics(p.mode)) ns += model.finish(kMoments * ceil_div(pixels(p.main), tile.m) * p.main.k * 4);
    if (ns < best.ns) best = {splits, ns};
  });
  return best;
}

struct Sm90Candidate {
  const ConvSm90Tile* tile = nullptr;
  double ns = std::numeric_limits<double>::infinity();
};

Sm90Candidate best_sm90(const Model& model, const ConvProblem& p, const EngineChoice& choice, int32_t channels,
                        int64_t compulsory) {
  const bool named = choice.kind == EngineChoice::kSm90 && choice.tile_m;
  int64_t depth = int64_t{p.main.r} * p.main.s * p.main.c / kConvSm90Depth;
  if (has_projection(p.mode)) depth += p.projection.c / kConvSm90Depth;
  Sm90Candidate best;
  for (const ConvSm90Tile& tile : kConvSm90Tiles) {
    if (named && (tile.pixels != choice.tile_m || tile.channels != choice.tile_n)) continue;
    if (!conv_sm90_takes(tile, p.mode)) continue;
    if (conv_sm90_smem(tile, p.mode, channels) > model.device.smem_per_block) continue;
    const double work = model.persist(tile, conv_sm90_tiles(tile, p.main), depth);
    const double ns = kLaunch + std::max(compulsory / model.dram(), work);
    if (ns < best.ns) best = {&tile, ns};
  }
  return best;
}

// cuDNN is taken to have the same tiles, and faster instructions where the GPU has.
double torch_convolution(const Model& model, const ConvShape& q) {
  const int64_t bytes = size_of(model.dtype) * (inputs(q) + weights(q, 1) + outputs(q));
  const int64_t depth = steps(q, model.dtype);
  double best = std::numeric_limits<double>::infinity();
  for (const ConvFwdTile& tile : kConvFwdTiles) {
    const int64_t tiles = tiles_of(tile, q);
    const int32_t per_sm = model.blocks_per_sm(tile, conv_fwd_smem(tile, ConvFwdMode::kPlain, 0));
    for_each_split(tiles, depth, model.device.sm_count, 0, [&](int32_t splits) {
      const int64_t blocks = tiles * splits;
      double ns = model.multiply(tile, per_sm, blocks, ceil_div(depth, splits), model.family.torch_share);
      if (splits > 1) ns += model.finish(splits * outputs(q) * 4);
      best = std::min(best, ns);
    });
  }
  return kLaunch + std::max(bytes / model.dram(), best);
}

// Elements that relu(pre(.)) is made of.
int64_t prologue_elements(const ConvProblem& p) {
  if (!has_prologue(p.mode)) return 0;
  return inputs(has_projection(p.mode) ? p.projection : p.main);
}

// torch's way beside its convolutions: bn_add_act before them where there is a prologue, and after them always, or
// bn_stats where statistics are asked for.
double torch_passes(const Model& model, const ConvProblem& p) {
  const int64_t size = size_of(p.dtype);
  const int64_t tensors = has_statistics(p.mode) ? 1 : 2 + (p.residual || has_projection(p.mode));
  double ns = model.pass(tensors * outputs(p.main) * size);
  if (has_prologue(p.mode)) ns += model.pass(2 * prologue_elements(p) * size);
  return ns;
}

int64_t compulsory_bytes(const ConvProblem& p) {
  int64_t elements = inputs(p.main) + weights(p.main, p.groups) + outputs(p.main) * (p.residual ? 2 : 1);
  if (has_projection(p.mode)) elements += inputs(p.projection) + weights(p.projection, 1);
  return elements * size_of(p.dtype);
}

// A convolution's raw output is written, and read by bn_add_act; a residual is an input already. bn_stats reads what is
// the result.
int64_t torch_bytes(const ConvProblem& p, int64_t compulsory) {
  const int64_t raw = outputs(p.main) * (has_statistics(p.mode) ? 1 : 2 + 2 * has_projection(p.mode));
  return compulsory + (raw + 2 * prologue_elements(p)) * size_of(p.dtype);
}

std::string occupancy(int64_t blocks, int32_t splits, int32_t sm_count) {
  const std::string all =
      splits > 1 ? sentence(blocks, " blocks with ", splits, " splits") : sentence(blocks, " blocks");
  if (blocks < sm_count) return sentence(all, " leave ", sm_count - blocks, " of ", sm_count, " SMs idle");
  return sentence(all, ", ", ceil_div(blocks, sm_count), " on the busiest of ", sm_count, " SMs");
}

// The plan of sm90/conv_sm90 if somebody asks for it, or else a note on what it would do.
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
    note("sm90: no tile ", choice.tile_m ? "of that size " : "", "has this mode, or room for it");
    return std::nullopt;
  }
  const ConvSm90Tile& tile = *best.tile;
  if (choice.kind != EngineChoice::kSm90) {
    note("sm90 ", tile.pixels, "x", tile.channels, ": no GPU has run it yet, RESNET_FUSED_CUDA_ENGINE=sm90 does; ",
         best.ns / 1e3, " us predicted");
    return std::nullopt;
  }
  ConvPlan plan;
  plan.engine = ConvEngine::kSm90;
  plan.variant = {problem.dtype, tile.pixels, tile.channels, problem.mode};
  plan.tiles = static_cast<int32_t>(conv_sm90_tiles(tile, problem.main));
  plan.smem = conv_sm90_smem(tile, problem.mode, channels);
  plan.bytes = compulsory;
  plan.microseconds = best.ns / 1e3;
  note("sm80 and torch: RESNET_FUSED_CUDA_ENGINE is sm90");
  return plan;
}

}  // namespace

EngineChoice engine_choice(const char* text) {
  const std::string name = text ? text : "";
  EngineChoice choice;
  if (name.empty()) return choice;
  const std::string family = name.substr(0, name.find(':'));
  choice.kind = family == "sm90"    ? EngineChoice::kSm90
                : family == "sm80"  ? EngineChoice::kSm80
                : family == "torch" ? EngineChoice::kTorch
                                    : EngineChoice::kModel;
  if (choice.kind != EngineChoice::kModel && name == family) return choice;
  int end = 0;
  std::sscanf(name.c_str() + std::min(family.size(), name.size()), ":%dx%d%n:%d%n", &choice.tile_m, &choice.tile_n,
              &end, &choice.splits, &end);
  std::string tiles;
  bool known = false;
  for (const ConvFwdTile& t : kConvFwdTiles) {
    known |= choice.kind == EngineChoice::kSm80 && t.m == choice.tile_m && t.n == choice.tile_n && choice.splits >= 0;
    tiles += sentence(", sm80:", t.m, "x", t.n);
  }
  for (const ConvSm90Tile& t : kConvSm90Tiles) {
    known |= choice.kind == EngineChoice::kSm90 && t.pixels == choice.tile_m && t.channels == choice.tile_n &&
             choice.splits == 0;
    tiles += sentence(", sm90:", t.pixels, "x", t.channels);
  }
  if (known && family.size() + end == name.size()) return choice;
  throw std::runtime_error("RESNET_FUSED_CUDA_ENGINE is " + name + "; one of torch, sm80, sm90" + tiles +
                           " expected, after a tile of sm80 perhaps :4 for a depth in 4 parts; or unset it to let the "
                           "plan choose");
}

ConvPlan make_plan(const ConvProblem& problem, const Device& device, const EngineChoice& choice, Notes* notes) {
  const auto note = [notes](const auto&... words) {
    if (notes) notes->push_back(sentence(words...));
  };
  const int64_t compulsory = compulsory_bytes(problem);
  ConvPlan torch;
  torch.bytes = torch_bytes(problem, compulsory);
  torch.statistics = has_statistics(problem.mode);
  std::string why;
  if (!takes(problem, device, notes ? &why : nullptr)) {
    note("sm80: ", why);
    return torch;
  }
  if (choice.kind == EngineChoice::kTorch) {
    note("sm80: RESNET_FUSED_CUDA_ENGINE is torch");
    return torch;
  }

  const Model model(device, problem.dtype);
  constexpr int kTiles = sizeof(kConvFwdTiles) / sizeof(kConvFwdTiles[0]);
  Candidate candidates[kTiles];
  // More channels than bytes fit nowhere, and must not overflow on the way to that answer.
  const int32_t channels = std::min(prologue_channels(problem), device.smem_per_block);
  int best = 0;
  const auto allowed = [&](const ConvFwdTile& t) {
    return choice.kind != EngineChoice::kSm80 || !choice.tile_m || (t.m == choice.tile_m && t.n == choice.tile_n);
  };
  for (int i = 0; i < kTiles; ++i) {
    const ConvFwdTile& tile = kConvFwdTiles[i];
    const int32_t smem = conv_fwd_smem(tile, problem.mode, channels);
    if (smem <= device.smem_per_block && allowed(tile))
      candidates[i] = best_split(model, problem, tile, smem, compulsory, choice.splits);
    if (candidates[i].ns < candidates[best].ns) best = i;
  }
  if (notes || choice.kind == EngineChoice::kSm90)
    if (const auto plan = plan_sm90(model, problem, choice, channels, compulsory, notes)) return *plan;
  const bool fits = candidates[best].ns < std::numeric_limits<double>::infinity();
  double convolutions = 0, passes = 0;
  if (fits) {
    convolutions = torch_convolution(model, problem.main);
    if (has_projection(problem.mode)) convolutions += torch_convolution(model, problem.projection);
    passes = torch_passes(model, problem);
    torch.microseconds = (convolutions + passes) / 1e3;
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
      const int32_t smem = conv_fwd_smem(tile, problem.mode, channels);
      if (smem > device.smem_per_block) {
        note("sm80 ", tile.m, "x", tile.n, ": a block wants ", smem, " bytes of shared memory, and may have ",
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
           " of them to read and write activations again");
  }
  if (!kernel) return torch;

  const ConvFwdTile& tile = kConvFwdTiles[best];
  ConvPlan plan;
  plan.engine = ConvEngine::kSm80;
  plan.variant = {problem.dtype, tile.m, tile.n, problem.mode};
  plan.splits = candidates[best].splits;
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
    return sentence("torch: convolution, then ", plan.statistics ? "bn_stats, " : "bn_add_act, ", plan.bytes,
                    " bytes moved", time);
  const ConvFwdVariant& v = plan.variant;
  return sentence(plan.engine == ConvEngine::kSm90 ? "sm90 " : "sm80 ", v.tile_m, "x", v.tile_n, ": ", name_of(v.dtype),
                  ", ", name_of(v.mode), ", ", plan.tiles, " tiles of ", plan.smem, " bytes of shared memory, ",
                  plan.splits, plan.splits == 1 ? " split, " : " splits, ", plan.workspace, " bytes of partial sums, ",
                  plan.bytes, " bytes moved", time);
}

}  // namespace resnet_fused::cuda
