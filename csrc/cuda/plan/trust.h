// Which kernels are trusted: verified by a committed run (trust_table.cpp) or checked on first use in this process
// (first_use.h). Pure: no torch, no CUDA.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/kernels/bn/bn_add_act.h"
#include "cuda/kernels/bn/bn_gradient.h"
#include "cuda/kernels/bn/bn_stats.h"
#include "cuda/kernels/conv.h"
#include "cuda/kernels/pool/pool.h"
#include "cuda/plan/types.h"

namespace resnet_fused::cuda {

// Kernels that are verified together: their names are their files in csrc/cuda/kernels. A finishing kernel (bn_finish,
// conv_finish, conv_sm90_finish) belongs to the family of the kernel that it finishes. X(family, name, waits on
// mbarriers)
#define KERNEL_FAMILIES(X)                             \
  X(kConvFwd, "sm80/conv_fwd", false)                  \
  X(kConvStats, "sm80/conv_stats", false)              \
  X(kConvGradient, "sm80/conv_gradient", false)        \
  X(kConvSm90, "sm90/conv_sm90", true)                 \
  X(kConvSm90Stats, "sm90/conv_sm90_stats", true)      \
  X(kConvRows, "sm90/conv_rows", true)                 \
  X(kBlockFwd, "sm90/block_fwd", true)                 \
  X(kBnAddAct, "bn/bn_add_act", false)                 \
  X(kBnStats, "bn/bn_stats", false)                    \
  X(kBnBackwardReduce, "bn/bn_backward_reduce", false) \
  X(kBnBackward, "bn/bn_backward", false)              \
  X(kBnPool, "pool/bn_pool", false)                    \
  X(kPoolBackward, "pool/pool_backward", false)

enum class KernelFamily : int32_t {
#define FAMILY(family, name, waits) family,
  KERNEL_FAMILIES(FAMILY)
#undef FAMILY
};

#define ONE(family, name, waits) +1
constexpr int32_t kKernelFamilies = 0 KERNEL_FAMILIES(ONE);
#undef ONE

const char* name_of(KernelFamily family);  // "sm80/conv_fwd"

// Such a kernel can hang, and a check of its result cannot end a hang.
bool waits_on_mbarriers(KernelFamily family);

// A row of the trust table: all kernels of a family were right on GPUs of this compute capability.
struct Verified {
  KernelFamily family;
  int32_t arch;        // 10 * major + minor
  const char* date;    // "2026-12-01"
  const char* commit;  // of the kernels that ran
  const char* report;  // a file below benchmarks/results
};

const std::vector<Verified>& verified_kernels();  // trust_table.cpp

const Verified* verified_on(KernelFamily family, int32_t arch);  // null: not verified there
// Whether plans use the family without RESNET_FUSED_CUDA_ENGINE: if it is verified, or waits on no mbarrier.
bool is_planned_by_default(KernelFamily family, int32_t arch);
// "no GPU has run it yet", "verified on sm_90, 2026-12-01, commit ..., benchmarks/results/..."
std::string verified_words(KernelFamily family, int32_t arch);

// One compiled kernel, and its finishing kernel if `finished` (bn_finish counts only if it merges parts first).
struct KernelVariant {
  KernelFamily family;
  Dtype dtype;
  int32_t shape;   // index of the tile, or width of an access; < kShapes
  int32_t option;  // mode, layout etc.; < kOptions
  bool finished = false;

  static constexpr int32_t kDtypes = 4, kShapes = 8, kOptions = 16;
  static constexpr int32_t kCount = kKernelFamilies * kDtypes * kShapes * kOptions * 2;

  constexpr int32_t index() const {
    const int32_t kernel = (static_cast<int32_t>(family) * kDtypes + static_cast<int32_t>(dtype)) * kShapes + shape;
    return (kernel * kOptions + option) * 2 + finished;
  }
};

int32_t option_of(ConvMode mode);  // of a convolution, whose variant is kernel_of(problem, plan) (plan.h)
KernelVariant variant_of_add_act(const BnAddActVariant& v);
KernelVariant variant_of_stats(const BnStatsVariant& v, bool merges);
KernelVariant variant_of_reduce(const BnGradientVariant& v, bool merges);
KernelVariant variant_of_backward(const BnGradientVariant& v);
KernelVariant variant_of_pool(const PoolVariant& v);
KernelVariant variant_of_pool_backward(const PoolVariant& v);
std::string to_string(const KernelVariant& variant);  // "sm80/conv_fwd bfloat16 128x64 projection"

// RESNET_FUSED_CUDA_CHECK. kNever: trust every kernel. kFirst: check the first use of each unverified variant. kAlways:
// check every call.
enum class CheckMode : int32_t { kNever, kFirst, kAlways };
CheckMode check_mode(const char* text);  // 0, first, always; null or empty: first; else throws runtime_error

// What this process knows of one GPU's kernels. Thread-safe.
class KernelStates {
 public:
  enum State : uint8_t { kUnchecked, kTrusted, kRefused };

  State of(const KernelVariant& v) const { return states_[v.index()].load(std::memory_order_acquire); }

  // Does not undo a refusal: a kernel that was refused in the meantime stays refused.
  void trust(const KernelVariant& v) {
    State unchecked = kUnchecked;
    states_[v.index()].compare_exchange_strong(unchecked, kTrusted);
  }

  // Refuses the variant with and without its finishing kernel: which of the two was wrong is unknown.
  void refuse(KernelVariant v) {
    for (const bool finished : {false, true}) {
      v.finished = finished;
      states_[v.index()].store(kRefused);
    }
    ++refusals_;
  }

  // Grows with each refusal. A plan made before that may be out of date.
  uint64_t refusals() const { return refusals_.load(std::memory_order_acquire); }

  void forget() {
    for (std::atomic<State>& s : states_) s.store(kUnchecked);
    ++refusals_;
  }

 private:
  std::atomic<State> states_[KernelVariant::kCount] = {};
  std::atomic<uint64_t> refusals_{0};
};

// Whether a kernel gave a wrong result on this GPU in this process.
inline bool is_refused(const Device& device, const KernelVariant& v) {
  return device.states && device.states->of(v) == KernelStates::kRefused;
}

}  // namespace resnet_fused::cuda
