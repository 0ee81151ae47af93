// What is planned, for which GPU, and what a plan chooses among. Pure: shapes and numbers, no torch, no CUDA.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/kernels/conv.h"

namespace resnet_fused::cuda {

class KernelStates;  // trust.h

// The properties of a GPU that plans depend on.
struct Device {
  int32_t arch = 80;  // 10 * major + minor
  int32_t sm_count = 108;
  int32_t smem_per_block = 166912;  // bytes per block, at most
  int32_t smem_per_sm = 167936;     // bytes shared by the blocks of an SM
  KernelStates* states = nullptr;   // what this process knows of its kernels; null: none was wrong
};

enum class Task : int32_t {
  kConv,
  kBasicBlock,  // an identity BasicBlock; its two convolutions may also be planned one by one
};

// A problem without its tensors: everything that the plan depends on.
struct Problem {
  Task task = Task::kConv;
  Dtype dtype = Dtype::kFloat32;
  ConvShape main;        // kBasicBlock: both convolutions, 3x3, stride 1, padding 1, c = k
  ConvShape projection;  // read if has_projection(mode)
  ConvMode mode;
  int64_t groups = 1;
  bool residual = false;
  bool aligned = true;     // every address is a multiple of 16 bytes
  bool allow_tf32 = true;  // float32 may be multiplied as TF32
};

enum class Engine : int32_t {
#define ENGINE(engine, kernel) engine,
  CONV_KERNELS(ENGINE)
#undef ENGINE
      kSm90Block,  // sm90/block_fwd
  kTorch,          // PyTorch's convolution, and passes of ours around it
  kTwoLaunches,    // a BasicBlock as two convolutions, each with its own plan
};

constexpr bool is_kernel(Engine engine) { return engine != Engine::kTorch && engine != Engine::kTwoLaunches; }

// A kernel that could run a problem: its launch parameters and predicted cost.
struct Candidate {
  Engine engine = Engine::kTorch;
  ConvFwdVariant variant{};            // kSm90Block: the tile is rows x columns of output pixels
  int32_t tile = 0;                    // index of the tile in the kernel's list
  int32_t splits = 1;                  // kSm80: split-K
  int32_t dp_tiles = 0, sk_units = 0;  // kSm90: stream-K, as in ConvFwdParams
  int64_t tiles = 0;                   // kSm80: blocks per split-K slice
  int32_t smem = 0;                    // bytes per block
  int32_t part = 0;                    // with moments or gradient sums: pixels per part that bn_finish combines
  int64_t workspace = 0;               // bytes of partial sums
  const char* missing = nullptr;       // why no such kernel is compiled; null: it is
  // Inputs and outputs, each counted once, without BatchNorm vectors and pixels that no tap reads. Kernels: plus
  // partial sums, written and read. kTorch: plus what the passes around its convolutions write and read.
  int64_t bytes = 0;
  double microseconds = 0;  // PREDICTED by the cost model; 0: not predicted, because no kernel can run
  double passes = 0;        // kTorch: the part of them spent in those passes
};

using Plan = Candidate;

// Why a candidate, or a whole engine, was not chosen.
struct Rejected {
  enum Why : int32_t {
    kUnsupported,   // `detail` says what
    kMissing,       // no such kernel is compiled
    kSharedMemory,  // a block needs more than the GPU has
    kWrong,         // it gave a wrong result in this process
    kUnverified,    // no GPU of this compute capability has run it yet; `detail` has the words of the trust table
    kOverride,      // RESNET_FUSED_CUDA_ENGINE is `detail`
    kOtherTile,     // RESNET_FUSED_CUDA_ENGINE names another tile
    kSlower,
  };

  Candidate candidate;
  bool whole_engine;  // then only candidate.engine is meaningful
  Why why;
  std::string detail;
};

}  // namespace resnet_fused::cuda
