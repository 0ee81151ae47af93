// The cost model: predicted time and bytes of each kernel, by which plan.cpp chooses. Pure.
#pragma once
#include <cstdint>
#include <limits>

#include "cuda/model_constants.h"
#include "cuda/plan.h"
#include "cuda/sm80/conv_fwd.h"
#include "cuda/sm90/block_fwd.h"
#include "cuda/sm90/conv_rows.h"
#include "cuda/sm90/conv_sm90.h"

namespace resnet_fused::cuda {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t pixels(const ConvShape& q) { return int64_t{q.n} * q.p * q.q; }
inline int64_t outputs(const ConvShape& q) { return pixels(q) * q.k; }
inline int64_t weights(const ConvShape& q, int64_t groups) { return int64_t{q.k} * (q.c / groups) * q.r * q.s; }

// Bytes of inputs and outputs, each once.
int64_t compulsory_bytes(const ConvProblem& p);
// The same, and what torch's further passes write and read.
int64_t torch_bytes(const ConvProblem& p, int64_t compulsory);

// What conv_sm90 does with one tile size.
struct Sm90Work {
  ConvFwdMode mode;
  int64_t tiles, steps;   // steps: of a tile, its projection's included
  int64_t partial_bytes;  // of one partial tile that are moved
  int64_t whole, shares;  // the tiles from `whole` on are the tail
  int64_t tail() const { return tiles - whole; }
};

const Family& family_of(int32_t arch);  // a row of kFamilies

// Times are in ns.
struct Model {
  const Device& device;
  const Family& family;
  Dtype dtype;

  Model(const Device& device, Dtype dtype);
  Model(const Device& device, Dtype dtype, const Family& family);

  int32_t blocks_per_sm(const ConvFwdTile& tile, int32_t smem) const;

  // The whole GPU's, in bytes a ns.
  double dram() const;
  double l2() const;

  // A pass over tensors that the kernel before it wrote.
  double pass(int64_t bytes) const;

  // `blocks` blocks of `steps` steps of conv_fwd.
  double multiply(const ConvFwdTile& tile, int32_t per_sm, int64_t blocks, double steps, double share) const;

  // sm90/conv_sm90: a block an SM, piece after piece, then conv_sm90_finish if there are shares.
  double persist(const ConvSm90Tile& tile, const Sm90Work& work) const;

  // sm90/conv_rows: likewise, with one tile's epilogue under the next one's products.
  double persist(const ConvRowsTile& tile, int64_t tiles, bool residual) const;

  // sm90/block_fwd: a whole BasicBlock, teams of warpgroups with a tile each.
  double persist(const BlockFwdShape& shape, int64_t tiles) const;

  // Partial sums are written and read through L2, by a second kernel.
  double finish(int64_t partial_bytes) const;
};

int64_t tiles_of(const ConvFwdTile& tile, const ConvShape& q);

struct Candidate {
  int32_t splits = 1;
  double ns = std::numeric_limits<double>::infinity();
};

// conv_fwd with this tile, its depth in as many parts as is fastest, or as are forced.
Candidate best_split(const Model& model, const ConvProblem& p, const ConvFwdTile& tile, int32_t smem,
                     int64_t compulsory, int32_t forced);

struct Sm90Candidate {
  const ConvSm90Tile* tile = nullptr;
  int32_t whole = 0, shares = 0;
  double ns = std::numeric_limits<double>::infinity();
};

// conv_sm90 with its fastest tile and shares, or those that are asked for. `channels`: that a prologue prepares.
Sm90Candidate best_sm90(const Model& model, const ConvProblem& p, const EngineChoice& choice, int32_t channels,
                        int64_t compulsory);

struct RowsCandidate {
  const ConvRowsTile* tile = nullptr;
  double ns = std::numeric_limits<double>::infinity();
};

// conv_rows with its fastest tile, or the one that is asked for.
RowsCandidate best_rows(const Model& model, const ConvProblem& p, const EngineChoice& choice, int64_t compulsory);

// cuDNN is taken to have the same tiles and on Hopper larger ones, and faster instructions where the GPU has.
// `beside`: bytes that the kernel moves besides the convolution's.
double torch_convolution(const Model& model, const ConvShape& q, int64_t beside = 0);

// torch's way beside its convolutions: bn_add_act before them where there is a prologue, and after them always, or
// bn_stats where statistics are asked for. Of a gradient's sums bn_backward_reduce, after an addition if there is one.
double torch_passes(const Model& model, const ConvProblem& p);

}  // namespace resnet_fused::cuda
