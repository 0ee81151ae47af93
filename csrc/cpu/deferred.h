// Convolutions of a program, collected and then run together: each is split over the threads, with a barrier of a
// microsecond between two, and what prepares them is done before. Results that only later steps read live in an arena
// that is written again and again.
//
// AMX kernels multiply faster than L3 delivers activations. So with at least as many images as threads, each thread
// takes its own images through all convolutions without waiting for the others, depth first: as many images at once as
// fit in L2, few through large layers and more through small ones.
#pragma once
#include <memory>
#include <variant>
#include <vector>

#include "common/problem.h"
#include "cpu/direct.h"
#include "cpu/packed_cache.h"
#include "cpu/winograd.h"

namespace resnet_fused::cpu {

// Kernels and all their arguments: ready to run.
struct DirectWork {
  DirectConv conv;
  DirectTiling tiling;
  const DirectKernels* kernels;

  void tile(int threads, bool may_pack) { tiling = kernels->tile(conv, threads, may_pack); }
  int64_t tasks() const { return tiling.tasks; }
  bool depth_first() const { return kernels->depth_first; }
  bool run(int64_t begin, int64_t end) const { return kernels->run(conv, tiling, begin, end); }
};
struct WinogradWork {
  WinogradConv conv;
  const WinogradKernels* kernels;

  void tile(int threads, bool /*may_pack*/) { kernels->tile(conv, threads); }
  int64_t tasks() const { return conv.tasks; }
  bool depth_first() const { return false; }
  bool run(int64_t begin, int64_t end) const { return kernels->run(conv, begin, end); }
};
using Work = std::variant<DirectWork, WinogradWork>;

// A convolution that is ready to run, and what holds its memory.
struct Step {
  Work work;
  std::vector<float> scale, shift;
  std::shared_ptr<const Packed> packed;
  Tensor weight;
  std::optional<Digest> unverified;  // of the weight that `packed` was made from
  Tensor x, out;
  OptTensor residual;
};

// Runs a step now. Returns false if its kernels must not be used for these values.
bool run_now(const Step& step);

// Thrown if a packed copy is not the weight's, or a step's kernels must not be used for these values. The results are
// undefined: call the ops again, one by one.
struct CannotDefer {};

class Deferred {
 public:
  // While this object exists, convolutions of this thread may wait in it.
  Deferred();
  ~Deferred();
  Deferred(const Deferred&) = delete;
  Deferred& operator=(const Deferred&) = delete;
  static Deferred* current();

  void add(Step step);
  // Runs all steps. is_needed(data): whether the result there is read by anything but later steps.
  template <typename IsNeeded>
  void run(const IsNeeded& is_needed) {
    std::vector<bool> needed;
    for (const Step& step : steps_) needed.push_back(is_needed(step.out.const_data_ptr()));
    run_steps(needed);
  }

 private:
  void run_steps(const std::vector<bool>& needed);

  std::vector<Step> steps_;
};

// While this object exists, convolutions of this thread do not wait. Python may run anything inside a call, even
// networks, in finalizers and signal handlers: create one around calls to Python.
class WithoutDeferring {
 public:
  WithoutDeferring();
  ~WithoutDeferring();
  WithoutDeferring(const WithoutDeferring&) = delete;
  WithoutDeferring& operator=(const WithoutDeferring&) = delete;

 private:
  Deferred* const before_;
};

// Runs the steps that wait in this thread, if any. Call it before anything but a step reads an activation.
void run_deferred();

}  // namespace resnet_fused::cpu
