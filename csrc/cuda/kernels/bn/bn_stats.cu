#include "cuda/kernels/bn/bn_stats.cuh"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/pass_table.cuh"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

struct BnStats {
  using Variant = BnStatsVariant;
  using Params = BnStatsParams;
  template <auto... kAxes>
  using Config = BnStatsConfig<kAxes...>;

  template <Dtype kDtype, int kVector>
  static void add(PassTable<BnStats>& table) {
    table.add<kDtype, kVector, Layout::kNHWC>();
    table.add<kDtype, kVector, Layout::kNCHW>();
  }

  template <typename Config>
  static void launch(const Params& p, const Queue& queue) {
    const BnReduction loop = reduce_activations(p.shape, Config::kVector, queue.sm_count);
    const int32_t smem = loop.block() * Config::kValues * sizeof(double);
    LAUNCH_DEPENDENT(bn_stats_kernel<Config>, loop.grid(), loop.block(), smem, queue, p, loop);
  }
};

}  // namespace

void launch_bn_stats(const BnStatsParams& params, const Queue& queue) {
  const BnStatsVariant wanted = select_bn_stats(params);
  BnFinishParams last;
  last.parts = parts_of(Parts::kMoments, params.shape, wanted.vector, queue.sm_count, params.workspace);
  last.first = params.mean, last.second = params.var;
  if (last.parts.parts > 0) launch_from(pass_table<BnStats>(), wanted, params, queue, "bn_stats");
  launch_bn_finish(last, queue);
}

std::vector<BnStatsVariant> compiled_bn_stats() { return variants_of(pass_table<BnStats>()); }

}  // namespace resnet_fused::cuda
