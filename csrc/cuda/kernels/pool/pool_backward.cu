#include "cuda/kernels/pool/pool_backward.cuh"

#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const PoolBackwardParams& p, const Queue& queue) {
  const PoolLoop loop = pool_loop(p.shape, /*over_outputs=*/false, Config::kVector, queue.sm_count);
  LAUNCH_DEPENDENT(pool_backward_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
}

using PoolBackwardTable = KernelTable<PoolVariant, PoolBackwardParams>;

// Explicit instantiations: taking a launcher's address compiles its kernel.
template <Dtype kDtype, int kVector, int kWindow>
void add(PoolBackwardTable& all) {
  constexpr PoolVariant kVariant{kDtype, kVector, kWindow};
  if constexpr (COMPILES(kVariant)) all.push_back({kVariant, &launch<PoolBackwardConfig<kDtype, kVector, kWindow>>});
}

template <Dtype kDtype, int kVector>
void add_widths(PoolBackwardTable& all) {
  add<kDtype, kVector, 2>(all);
  add<kDtype, kVector, 0>(all);
  add<kDtype, 1, 0>(all);
}

const PoolBackwardTable& table() {
  static const PoolBackwardTable all = [] {
    PoolBackwardTable m;
    add_widths<Dtype::kFloat32, 4>(m);
    add_widths<Dtype::kFloat16, 8>(m);
    add_widths<Dtype::kBFloat16, 8>(m);
    add<Dtype::kFloat64, 1, 0>(m);
    return m;
  }();
  return all;
}

}  // namespace

void launch_pool_backward(const PoolBackwardParams& params, const Queue& queue) {
  const BnShape over = inputs_of(params.shape);
  if (over.batch == 0 || over.channels == 0 || over.area == 0) return;
  const PoolVariant wanted = select_pool_backward(params);
  launch_from(table(), wanted, params, queue, "pool_backward");
}

std::vector<PoolVariant> compiled_pool_backward() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
