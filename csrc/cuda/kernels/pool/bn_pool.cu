#include "cuda/kernels/pool/bn_pool.cuh"

#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const BnPoolParams& p, const Queue& queue) {
  const PoolLoop loop = pool_loop(p.shape, /*over_outputs=*/true, Config::kVector, queue.sm_count);
  LAUNCH_DEPENDENT(bn_pool_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
}

using BnPoolTable = KernelTable<PoolVariant, BnPoolParams>;

// Explicit instantiations: taking a launcher's address compiles its kernel.
template <Dtype kDtype, int kVector, int kWindow, bool kArgmax>
void add(BnPoolTable& all) {
  constexpr PoolVariant kVariant{kDtype, kVector, kWindow, kArgmax};
  if constexpr (COMPILES(kVariant)) all.push_back({kVariant, &launch<BnPoolConfig<kDtype, kVector, kWindow, kArgmax>>});
}

template <Dtype kDtype, int kVector, int... kWindow>
void add_windows(BnPoolTable& all) {
  (add<kDtype, kVector, kWindow, true>(all), ...);
  (add<kDtype, kVector, kWindow, false>(all), ...);
}

template <Dtype kDtype, int kVector>
void add_widths(BnPoolTable& all) {
  add_windows<kDtype, kVector, 3, 0>(all);
  add_windows<kDtype, 1, 0>(all);
}

const BnPoolTable& table() {
  static const BnPoolTable all = [] {
    BnPoolTable m;
    add_widths<Dtype::kFloat32, 4>(m);
    add_widths<Dtype::kFloat16, 8>(m);
    add_widths<Dtype::kBFloat16, 8>(m);
    add_windows<Dtype::kFloat64, 1, 0>(m);
    return m;
  }();
  return all;
}

}  // namespace

void launch_bn_pool(const BnPoolParams& params, const Queue& queue) {
  const BnShape over = outputs_of(params.shape);
  if (over.batch == 0 || over.channels == 0 || over.area == 0) return;
  const PoolVariant wanted = select_bn_pool(params);
  launch_from(table(), wanted, params, queue, "bn_pool");
}

std::vector<PoolVariant> compiled_bn_pool() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
