// The cost model: times and bytes that the planners of several kernels share. Pure. Times are in ns.
#pragma once
#include <cstdint>
#include <limits>

#include "cuda/plan/cost_constants.h"
#include "cuda/plan/types.h"

namespace resnet_fused::cuda {

constexpr double kNever = std::numeric_limits<double>::infinity();

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t pixels(const ConvShape& q) { return int64_t{q.n} * q.p * q.q; }
inline int64_t outputs(const ConvShape& q) { return pixels(q) * q.k; }
inline int64_t weights(const ConvShape& q, int64_t groups) { return int64_t{q.k} * (q.c / groups) * q.r * q.s; }
int64_t inputs(const ConvShape& q);  // elements of x that a tap reads: a strided 1x1 convolution skips some

// Bytes of inputs and outputs, each counted once.
int64_t compulsory_bytes(const Problem& p);
// Elements that the prologue, relu(pre(.)), computes.
int64_t prologue_elements(const Problem& p);
// The input channels that a prologue needs a table for, but no more than bytes of shared memory: more never fit.
int32_t prologue_channels(const Problem& p, const Device& device);

const Family& family_of(int32_t arch);  // the row of kFamilies

struct Model {
  const Device& device;
  const Family& family;
  Dtype dtype;

  Model(const Device& device, Dtype dtype);
  Model(const Device& device, Dtype dtype, const Family& family);

  // Bandwidth of the whole GPU, in bytes per ns.
  double dram() const;
  double l2() const;

  // A pass over tensors that the previous kernel wrote: through L2 if twice their bytes fit there, else through DRAM.
  double pass(int64_t bytes) const;

  // A second kernel that adds partial sums. They are written and read through L2.
  double finish(int64_t partial_bytes) const;

  // bn_finish after a kernel that stores one part of moments or sums per `part` pixels; 0 if the mode has neither.
  double finish_parts(const Problem& p, int64_t part) const;
};

constexpr int32_t kSplits[] = {2, 3, 4, 6, 8, 12, 16};  // of a GEMM's depth

// torch.cpp: ns of cuDNN, modelled with our tiles and on Hopper larger ones too. torch_share covers faster instructions
// where the GPU has them. `extra_bytes`: that the kernel moves in addition to the convolution's.
double torch_convolution(const Model& model, const ConvShape& q, int64_t extra_bytes = 0);

// Bytes of inputs and outputs, and those that the passes around the convolutions write and read.
int64_t torch_bytes(const Problem& p);

}  // namespace resnet_fused::cuda
