// Which kernels are known to be right: verified by a committed run (trust_table.cpp), or checked on first use in this
// process (first_use.h). Pure: no torch, no CUDA.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/bn/bn_add_act.h"
#include "cuda/bn/bn_gradient.h"
#include "cuda/bn/bn_stats.h"
#include "cuda/conv.h"
#include "cuda/device.h"
#include "cuda/pool/pool.h"
#include "cuda/sm90/block_fwd.h"

namespace resnet_fused::cuda {

// Kernels that are verified together, called as their files below csrc/cuda are. Those that end another's launch
// (bn_finish, conv_finish, conv_sm90_finish) belong to its family.
enum class KernelFamily : int32_t {
  kConvFwd,
  kConvStats,
  kConvGradient,
  kConvSm90,
  kConvSm90Stats,
  kConvRows,
  kBlockFwd,
  kBnAddAct,
  kBnStats,
  kBnBackwardReduce,
  kBnBackward,
  kBnPool,
  kPoolBackward
};
constexpr int32_t kKernelFamilies = 13;

const char* name_of(KernelFamily family);  // "sm80/conv_fwd"

// Such a kernel can hang, which no check of its result would end.
constexpr bool waits_on_mbarriers(KernelFamily family) {
  return family >= KernelFamily::kConvSm90 && family <= KernelFamily::kBlockFwd;
}

// A row of the table: all kernels of a family were right on GPUs of that compute capability.
struct Verified {
  KernelFamily family;
  int32_t arch;        // 10 * major + minor
  const char* date;    // "2026-12-01"
  const char* commit;  // of the kernels that ran
  const char* report;  // a file below benchmarks/results
};

const std::vector<Verified>& verified_kernels();  // trust_table.cpp

const Verified* verified_on(KernelFamily family, int32_t arch);  // null: not verified there
// Whether it is planned without being asked for: one that waits on mbarriers is where it is verified.
bool is_planned_by_default(KernelFamily family, int32_t arch);
// "no GPU has run it yet", "verified on sm_90, 2026-12-01, commit ..., benchmarks/results/..."
std::string verified_words(KernelFamily family, int32_t arch);

// One compiled kernel and, if `finished`, the one that ends its launch (bn_finish counts where it merges parts first).
struct KernelVariant {
  KernelFamily family;
  Dtype dtype;
  int32_t shape;   // which tile, or how wide an access is; < kShapes
  int32_t option;  // mode, layout and the like; < kOptions
  bool finished = false;

  static constexpr int32_t kDtypes = 4, kShapes = 8, kOptions = 16;
  static constexpr int32_t kCount = kKernelFamilies * kDtypes * kShapes * kOptions * 2;

  constexpr int32_t index() const {
    const int32_t kernel = (static_cast<int32_t>(family) * kDtypes + static_cast<int32_t>(dtype)) * kShapes + shape;
    return (kernel * kOptions + option) * 2 + finished;
  }
};

KernelVariant variant_of_sm80(const ConvFwdVariant& v, bool finished);
KernelVariant variant_of_sm90(const ConvFwdVariant& v, bool finished);
KernelVariant variant_of_rows(const ConvFwdVariant& v);
KernelVariant variant_of_block(const BlockFwdVariant& v);
KernelVariant variant_of_add_act(const BnAddActVariant& v);
KernelVariant variant_of_stats(const BnStatsVariant& v, bool merges);
KernelVariant variant_of_reduce(const BnGradientVariant& v, bool merges);
KernelVariant variant_of_backward(const BnGradientVariant& v);
KernelVariant variant_of_pool(const PoolVariant& v);
KernelVariant variant_of_pool_backward(const PoolVariant& v);
std::string to_string(const KernelVariant& variant);  // "sm80/conv_fwd bfloat16 128x64 projection"

// RESNET_FUSED_CUDA_CHECK. kFirst: the first use of each variant that is not verified; kNever trusts every kernel.
enum class CheckMode : int32_t { kNever, kFirst, kAlways };
CheckMode check_mode(const char* text);  // 0, first, always; null or empty: first. Throws a sentence at any other

// What this process has seen of one GPU's kernels. Safe from any thread.
class KernelStates {
 public:
  enum State : uint8_t { kUnchecked, kTrusted, kRefused };

  State of(const KernelVariant& v) const { return states_[v.index()].load(std::memory_order_acquire); }

  // For good: a kernel that was refused in the meantime stays so.
  void trust(const KernelVariant& v) {
    State unchecked = kUnchecked;
    states_[v.index()].compare_exchange_strong(unchecked, kTrusted);
  }

  // With and without what ends its launch: which of the two kernels was wrong is not known.
  void refuse(KernelVariant v) {
    for (const bool finished : {false, true}) {
      v.finished = finished;
      states_[v.index()].store(kRefused);
    }
    ++refusals_;
  }

  // Grows with each refusal: a plan that was made before may be out of date.
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
