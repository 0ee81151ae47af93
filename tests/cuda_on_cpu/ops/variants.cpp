// All compiled kernel variants, as distinguished by csrc/cuda/plan/trust.h.
#include "bindings/library.h"
#include "cuda/kernels/kernels.h"
#include "cuda/plan/trust.h"
#include "ops/faults.h"

namespace cuda_on_cpu::bindings {

namespace {

using namespace resnet_fused::cuda;

// Index and name of each variant; both with and without its finishing kernel, if it has one.
std::vector<std::pair<int32_t, std::string>> variants() {
  std::vector<std::pair<int32_t, std::string>> all;
  const auto add = [&](const KernelVariant& v) { all.emplace_back(v.index(), to_string(v)); };
  for (const bool finished : {false, true}) {
    for (const ConvFwdVariant& v : compiled_conv_fwd()) add(variant_of_sm80(v, finished));
    for (const ConvFwdVariant& v : compiled_conv_sm90()) add(variant_of_sm90(v, finished));
    for (const BnStatsVariant& v : compiled_bn_stats()) add(variant_of_stats(v, finished));
    for (const BnGradientVariant& v : compiled_bn_backward_reduce()) add(variant_of_reduce(v, finished));
  }
  for (const ConvFwdVariant& v : compiled_conv_rows()) add(variant_of_rows(v));
  for (const BlockFwdVariant& v : compiled_block_fwd()) add(variant_of_block(v));
  for (const BnAddActVariant& v : compiled_bn_add_act()) add(variant_of_add_act(v));
  for (const BnGradientVariant& v : compiled_bn_backward()) add(variant_of_backward(v));
  for (const PoolVariant& v : compiled_bn_pool()) add(variant_of_pool(v));
  for (const PoolVariant& v : compiled_pool_backward()) add(variant_of_pool_backward(v));
  return all;
}

const Binding bindings[] = {
    {"variants", &variants},
    {"most_variants", [] { return KernelVariant::kCount; }},
    {"set_fault", &set_fault},
};

}  // namespace

}  // namespace cuda_on_cpu::bindings
