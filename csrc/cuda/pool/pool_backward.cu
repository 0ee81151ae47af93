#include "cuda/pool/pool_backward.cuh"

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/menu.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const PoolBackwardParams& p, const Queue& queue) {
  const PoolWalk walk = walk_pool(p.shape, /*over_outputs=*/false, Config::kVector, queue.sm_count);
  LAUNCH_DEPENDENT(pool_backward_kernel<Config>, walk.grid(), walk.block(), 0, queue, p, walk);
}

using PoolBackwardMenu = Menu<PoolVariant, PoolBackwardParams>;

// Explicit instantiations: taking a launcher's address compiles its kernel.
template <Dtype kDtype, int kVector, int kSide>
void add(PoolBackwardMenu& all) {
  constexpr PoolVariant kVariant{kDtype, kVector, kSide};
  if constexpr (COMPILES(kVariant)) all.push_back({kVariant, &launch<PoolBackwardConfig<kDtype, kVector, kSide>>});
}

template <Dtype kDtype, int kVector>
void add_widths(PoolBackwardMenu& all) {
  add<kDtype, kVector, 2>(all);
  add<kDtype, kVector, 0>(all);
  add<kDtype, 1, 0>(all);
}

const PoolBackwardMenu& menu() {
  static const PoolBackwardMenu all = [] {
    PoolBackwardMenu m;
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
  const BnShape walked = inputs_of(params.shape);
  if (walked.batch == 0 || walked.channels == 0 || walked.area == 0) return;
  const PoolVariant wanted = select_pool_backward(params);
  launch_from(menu(), wanted, params, queue, "pool_backward");
}

std::vector<PoolVariant> compiled_pool_backward() { return variants_of(menu()); }

}  // namespace resnet_fused::cuda
