#include "cuda/plan/trust.h"

#include <stdexcept>

#include "cuda/plan/planner.h"
#include "cuda/plan/words.h"

namespace resnet_fused::cuda {

namespace {

struct FamilyRow {
  const char* name;
  bool waits_on_mbarriers;
};
constexpr FamilyRow kRows[] = {
#define ROW(family, name, waits) {name, waits},
    KERNEL_FAMILIES(ROW)
#undef ROW
};

KernelVariant gradient_variant(KernelFamily family, const BnGradientVariant& v, bool merges) {
  const int32_t option = 2 * static_cast<int32_t>(v.mask) + (v.layout == Layout::kNCHW);
  return {family, v.dtype, v.vector > 1, option, merges};
}

constexpr int32_t kWithArgmax = 4;  // added to PoolVariant::window, which is smaller

KernelVariant pool_variant(KernelFamily family, const PoolVariant& v) {
  return {family, v.dtype, v.vector > 1, v.window + kWithArgmax * v.argmax};
}

std::string tile_words(const KernelVariant& v) {
  if (const Planner* planner = planner_of(v.family)) return planner->tile_name(v.shape);
  return v.shape ? "16 bytes an access" : "an element an access";
}

ConvMode mode_of(int32_t option) { return {static_cast<Prologue>(option % 2), static_cast<Epilogue>(option / 2)}; }

std::string option_words(const KernelVariant& v) {
  constexpr const char* kMasks[] = {"no mask", "mask recomputed", "mask of out"};
  constexpr const char* kShortcuts[] = {"no shortcut", "shortcut", "projected shortcut"};
  const char* const layout = v.option % 2 ? "NCHW" : "NHWC";
  switch (v.family) {
    case KernelFamily::kBlockFwd:
      return "";
    case KernelFamily::kBnAddAct:
      return sentence(" ", layout, " ", kShortcuts[v.option / 2]);
    case KernelFamily::kBnStats:
      return sentence(" ", layout);
    case KernelFamily::kBnBackwardReduce:
    case KernelFamily::kBnBackward:
      return sentence(" ", layout, " ", kMasks[v.option / 2]);
    case KernelFamily::kBnPool:
    case KernelFamily::kPoolBackward:
      return (v.option % kWithArgmax ? sentence(" windows of ", v.option % kWithArgmax) : " any window") +
             (v.option / kWithArgmax ? ", argmax" : "");
    default:
      return sentence(" ", name_of(mode_of(v.option)));
  }
}

}  // namespace

const char* name_of(KernelFamily family) { return kRows[static_cast<int32_t>(family)].name; }

bool waits_on_mbarriers(KernelFamily family) { return kRows[static_cast<int32_t>(family)].waits_on_mbarriers; }

const Verified* verified_on(KernelFamily family, int32_t arch) {
  for (const Verified& v : verified_kernels())
    if (v.family == family && v.arch == arch) return &v;
  return nullptr;
}

bool is_planned_by_default(KernelFamily family, int32_t arch) {
  return !waits_on_mbarriers(family) || verified_on(family, arch);
}

std::string verified_words(KernelFamily family, int32_t arch) {
  if (const Verified* v = verified_on(family, arch))
    return sentence("verified on sm_", arch, ", ", v->date, ", commit ", v->commit, ", ", v->report);
  for (const Verified& v : verified_kernels())
    if (v.family == family) return sentence("no sm_", arch, " has run it yet");
  return "no GPU has run it yet";
}

int32_t option_of(ConvMode mode) {
  return 2 * static_cast<int32_t>(mode.epilogue) + static_cast<int32_t>(mode.prologue);
}

KernelVariant variant_of_add_act(const BnAddActVariant& v) {
  const int32_t option = 2 * static_cast<int32_t>(v.shortcut) + (v.layout == Layout::kNCHW);
  return {KernelFamily::kBnAddAct, v.dtype, v.vector > 1, option};
}

KernelVariant variant_of_stats(const BnStatsVariant& v, bool merges) {
  return {KernelFamily::kBnStats, v.dtype, v.vector > 1, v.layout == Layout::kNCHW, merges};
}

KernelVariant variant_of_reduce(const BnGradientVariant& v, bool merges) {
  return gradient_variant(KernelFamily::kBnBackwardReduce, v, merges);
}

KernelVariant variant_of_backward(const BnGradientVariant& v) {
  return gradient_variant(KernelFamily::kBnBackward, v, false);
}

KernelVariant variant_of_pool(const PoolVariant& v) { return pool_variant(KernelFamily::kBnPool, v); }

KernelVariant variant_of_pool_backward(const PoolVariant& v) { return pool_variant(KernelFamily::kPoolBackward, v); }

std::string to_string(const KernelVariant& v) {
  return sentence(name_of(v.family), " ", name_of(v.dtype), " ", tile_words(v), option_words(v),
                  v.finished ? ", in parts" : "");
}

CheckMode check_mode(const char* text) {
  const std::string name = text ? text : "";
  if (name.empty() || name == "first") return CheckMode::kFirst;
  if (name == "0") return CheckMode::kNever;
  if (name == "always") return CheckMode::kAlways;
  throw std::runtime_error("RESNET_FUSED_CUDA_CHECK is " + name +
                           "; one of 0, first, always expected, or unset it to check each kernel's first use");
}

}  // namespace resnet_fused::cuda
