// The cost model: predicts the time and bytes of each kernel. plan.cpp chooses by it. Pure.
#pragma once
#include <cstdint>
#include <limits>

#include "cuda/kernels/sm80/conv_fwd.h"
#include "cuda/kernels/sm90/block_fwd.h"
#include "cuda/kernels/sm90/conv_rows.h"
#include "cuda/kernels/sm90/conv_sm90.h"
#include "cuda/plan/cost_constants.h"
#include "cuda/plan/plan.h"

namespace resnet_fused::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t pixels(const ConvShape& q) { return int64_t{q.n} * q.p * q.q; }
inline int64_t outputs(const ConvShape& q) { return pixels(q) * q.k; }
inline int64_t weights(const ConvShape& q, int64_t groups) { return int64_t{q.k} * (q.c / groups) * q.r * q.s; }

// Bytes of inputs and outputs, each counted once.
int64_t compulsory_bytes(const ConvProblem& p);
// `compulsory` plus the bytes that the passes around torch's convolutions write and read.
int64_t torch_bytes(const ConvProblem& p, int64_t compulsory);

// The work of conv_sm90 with one tile size.
struct Sm90Work {
  ConvFwdMode mode;
  int64_t tiles, steps;        // steps: per tile, including its projection
  int64_t partial_bytes;       // moved per partial tile
  int64_t dp_tiles, sk_units;  // stream-K: tiles from dp_tiles on are cut into sk_units
  int64_t sk_tiles() const { return tiles - dp_tiles; }
};

const Family& family_of(int32_t arch);  // the row of kFamilies

// Times are in ns.
struct Model {
  const Device& device;
  const Family& family;
  Dtype dtype;

  Model(const Device& device, Dtype dtype);
  Model(const Device& device, Dtype dtype, const Family& family);

  int32_t blocks_per_sm(const ConvFwdTile& tile, int32_t smem) const;

  // Bandwidth of the whole GPU, in bytes per ns.
  double dram() const;
  double l2() const;

  // A pass over tensors that the previous kernel wrote: through L2 if twice their bytes fit there, else through DRAM.
  double pass(int64_t bytes) const;

  // conv_fwd: `blocks` blocks of `steps` steps each, at `share` of the peak rate.
  double multiply(const ConvFwdTile& tile, int32_t per_sm, int64_t blocks, double steps, double share) const;

  // sm90/conv_sm90: one persistent block per SM runs tiles and stream-K units; then conv_sm90_finish if there are
  // units.
  double persist(const ConvSm90Tile& tile, const Sm90Work& work) const;

  // sm90/conv_rows: persistent too; a tile's epilogue overlaps the next tile's products.
  double persist(const ConvRowsTile& tile, int64_t tiles, bool residual) const;

  // sm90/block_fwd: a whole BasicBlock; each team of warpgroups has its own tile.
  double persist(const BlockFwdShape& shape, int64_t tiles) const;

  // A second kernel that adds partial sums. They are written and read through L2.
  double finish(int64_t partial_bytes) const;
};

int64_t tiles_of(const ConvFwdTile& tile, const ConvShape& q);

struct Candidate {
  int32_t splits = 1;
  double ns = std::numeric_limits<double>::infinity();
};

// conv_fwd with this tile, and the fastest number of splits or the forced one.
Candidate best_split(const Model& model, const ConvProblem& p, const ConvFwdTile& tile, int32_t smem,
                     int64_t compulsory, int32_t forced);

struct Sm90Candidate {
  const ConvSm90Tile* tile = nullptr;
  int32_t dp_tiles = 0, sk_units = 0;
  double ns = std::numeric_limits<double>::infinity();
};

// conv_sm90 with its fastest tile and number of units, or those that `choice` names. `channels`: input channels of the
// prologue.
Sm90Candidate best_sm90(const Model& model, const ConvProblem& p, const EngineChoice& choice, int32_t channels,
                        int64_t compulsory);

struct RowsCandidate {
  const ConvRowsTile* tile = nullptr;
  double ns = std::numeric_limits<double>::infinity();
};

// conv_rows with its fastest tile, or the one that `choice` names.
RowsCandidate best_rows(const Model& model, const ConvProblem& p, const EngineChoice& choice, int64_t compulsory);

// cuDNN, modelled with our tiles and on Hopper larger ones too. torch_share covers faster instructions where the GPU
// has them. `extra_bytes`: bytes that the kernel moves in addition to the convolution's.
double torch_convolution(const Model& model, const ConvShape& q, int64_t extra_bytes = 0);

// The passes around torch's convolutions. Before them: bn_add_act if there is a prologue. After them: bn_add_act, or
// bn_stats for statistics, or for gradient sums bn_backward_reduce, after an addition if there is a residual.
double torch_passes(const Model& model, const ConvProblem& p);

}  // namespace resnet_fused::cuda
