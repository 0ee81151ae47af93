#include "cuda/kernels/bn/bn_stats.cuh"

#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const BnStatsParams& p, const Queue& queue) {
  const BnReduction loop = reduce_activations(p.shape, Config::kVector, queue.sm_count);
  const int32_t smem = loop.block() * Config::kValues * sizeof(double);
  LAUNCH_DEPENDENT(bn_stats_kernel<Config>, loop.grid(), loop.block(), smem, queue, p, loop);
}

using BnStatsTable = KernelTable<BnStatsVariant, BnStatsParams>;

// Explicit instantiations: taking a launcher's address compiles its kernel.
template <Dtype kDtype, int kVector, Layout kLayout>
void add(BnStatsTable& all) {
  constexpr BnStatsVariant kVariant{kDtype, kVector, kLayout};
  if constexpr (COMPILES(kVariant)) all.push_back({kVariant, &launch<BnStatsConfig<kDtype, kVector, kLayout>>});
}

template <Dtype kDtype, int... kVector>
void add_widths(BnStatsTable& all) {
  (add<kDtype, kVector, Layout::kNHWC>(all), ...);
  (add<kDtype, kVector, Layout::kNCHW>(all), ...);
}

const BnStatsTable& table() {
  static const BnStatsTable all = [] {
    BnStatsTable m;
    add_widths<Dtype::kFloat32, 4, 1>(m);
    add_widths<Dtype::kFloat16, 8, 1>(m);
    add_widths<Dtype::kBFloat16, 8, 1>(m);
    add_widths<Dtype::kFloat64, 1>(m);
    return m;
  }();
  return all;
}

}  // namespace

void launch_bn_stats(const BnStatsParams& params, const Queue& queue) {
  const BnStatsVariant wanted = select_bn_stats(params);
  BnFinishParams last;
  last.parts = parts_of(Parts::kMoments, params.shape, wanted.vector, queue.sm_count, params.workspace);
  last.first = params.mean, last.second = params.var;
  if (last.parts.parts > 0) launch_from(table(), wanted, params, queue, "bn_stats");
  launch_bn_finish(last, queue);
}

std::vector<BnStatsVariant> compiled_bn_stats() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
