// What a kernel tells the planner. Each is defined in the kernel's host file, csrc/cuda/kernels/<folder>/<kernel>.cpp;
// plan.cpp has the table.
#pragma once
#include <string>
#include <vector>

#include "cuda/plan/cost_model.h"
#include "cuda/plan/trust.h"
#include "cuda/plan/types.h"

namespace resnet_fused::cuda {

struct Planner {
  Engine engine;
  Task task;
  const char* name;                  // "sm90:rows": in texts and in RESNET_FUSED_CUDA_ENGINE (override.h)
  KernelFamily (*family)(ConvMode);  // the trust family of its kernels; null: none of ours
  // Why it cannot run the problem on the GPU; empty: it can.
  std::string (*rejects)(const Problem&, const Device&);
  std::string (*tile_name)(int32_t tile);  // "128x64"
  int32_t named_tiles;                     // tiles that RESNET_FUSED_CUDA_ENGINE may name, 0 to named_tiles - 1
  bool can_split;                          // whether it may also demand a number of splits or stream-K units
  // One candidate per tile, with its launch parameters but without what depends on the cost.
  std::vector<Candidate> (*candidates)(const Problem&, const Device&);
  // Chooses the number of splits or stream-K units, and fills in workspace, bytes and microseconds. `parts`: the number
  // of parts that RESNET_FUSED_CUDA_ENGINE demands; 0: any.
  void (*cost)(Candidate&, const Problem&, const Model&, int32_t parts);
};

constexpr int32_t kHopper = 90;  // sm_90a's instructions exist only there

#define DECLARE(engine, kernel) extern const Planner kernel##_planner;
CONV_KERNELS(DECLARE)
#undef DECLARE
extern const Planner block_fwd_planner;
extern const Planner torch_planner;  // plan/torch.cpp

// All of them, in order of preference: of two equal times, the first wins. The last of a task always runs, and
// its times are asked for only if a kernel before it accepts the problem.
const std::vector<const Planner*>& planners();
const Planner& planner_of(Engine engine);
// The planner that plans a family's kernels; null for passes.
const Planner* planner_of(KernelFamily family);

// Why no convolution kernel of ours can run the problem: dtype, groups, alignment, or sizes past 32 bits.
std::string unsupported_conv(const Problem& problem, const Device& device);  // plan/unsupported.cpp
// Why no kernel with wgmma can.
std::string unsupported_by_wgmma(const Problem& problem, const Device& device);  // plan/unsupported.cpp

}  // namespace resnet_fused::cuda
