// Convolutions of a program, collected and then run together, so that activations stay in L2.
//
// With at least as many images as threads, each thread takes its own images through all convolutions without waiting
// for the others, depth first: as many images at once as fit in L2, few through large layers and more through small
// ones. Fewer images are split within each convolution, with a barrier between two. Results that only later steps read
// live in a small arena that is written again and again.
#pragma once
#include <memory>
#include <vector>

#include "common/problem.h"
#include "cpu/direct.h"
#include "cpu/packed_cache.h"

namespace resnet_fused::cpu {

// A direct convolution that is ready to run, and what holds its memory.
struct DirectStep {
  DirectConv conv;
  DirectTiling tiling;
  const DirectKernels* kernels;
  std::vector<float> scale, shift;
  std::shared_ptr<const Packed> packed;
  Tensor weight;
  std::optional<Digest> unverified;  // of the weight that `packed` was made from
  Tensor x, out;
  OptTensor residual;
};

// Thrown if a packed copy is not the weight's, or a weight that a task packed is not finite. The results are undefined:
// call the ops again, one by one.
struct CannotDefer {};

class Deferred {
 public:
  // While this object exists, direct convolutions of this thread wait in it.
  Deferred();
  ~Deferred();
  Deferred(const Deferred&) = delete;
  Deferred& operator=(const Deferred&) = delete;
  static Deferred* current();

  void add(DirectStep step);
  // Runs all steps. is_needed(data): whether the result there is read by anything but later steps.
  template <typename IsNeeded>
  void run(const IsNeeded& is_needed) {
    std::vector<bool> needed;
    for (const DirectStep& step : steps_) needed.push_back(is_needed(step.conv.out));
    run_steps(needed);
  }

 private:
  void run_steps(const std::vector<bool>& needed);

  std::vector<DirectStep> steps_;
};

// Runs the steps that wait in this thread, if any. Call it before anything but a direct convolution reads an
// activation.
void run_deferred();

}  // namespace resnet_fused::cpu
