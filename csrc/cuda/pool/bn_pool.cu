#include "cuda/pool/bn_pool.cuh"

#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/menu.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const BnPoolParams& p, const Queue& queue) {
  const PoolWalk walk = walk_pool(p.shape, /*over_outputs=*/true, Config::kVector, queue.sm_count);
  LAUNCH_DEPENDENT(bn_pool_kernel<Config>, walk.grid(), walk.block(), 0, queue, p, walk);
}

using BnPoolMenu = Menu<PoolVariant, BnPoolParams>;

// Explicit instantiations: taking a launcher's address compiles its kernel.
template <Dtype kDtype, int kVector, int kSide, bool kArgmax>
void add(BnPoolMenu& all) {
  constexpr PoolVariant kVariant{kDtype, kVector, kSide, kArgmax};
  if constexpr (COMPILES(kVariant)) all.push_back({kVariant, &launch<BnPoolConfig<kDtype, kVector, kSide, kArgmax>>});
}

template <Dtype kDtype, int kVector, int... kSide>
void add_sides(BnPoolMenu& all) {
  (add<kDtype, kVector, kSide, true>(all), ...);
  (add<kDtype, kVector, kSide, false>(all), ...);
}

template <Dtype kDtype, int kVector>
void add_widths(BnPoolMenu& all) {
  add_sides<kDtype, kVector, 3, 0>(all);
  add_sides<kDtype, 1, 0>(all);
}

const BnPoolMenu& menu() {
  static const BnPoolMenu all = [] {
    BnPoolMenu m;
    add_widths<Dtype::kFloat32, 4>(m);
    add_widths<Dtype::kFloat16, 8>(m);
    add_widths<Dtype::kBFloat16, 8>(m);
    add_sides<Dtype::kFloat64, 1, 0>(m);
    return m;
  }();
  return all;
}

}  // namespace

void launch_bn_pool(const BnPoolParams& params, const Queue& queue) {
  const BnShape walked = outputs_of(params.shape);
  if (walked.batch == 0 || walked.channels == 0 || walked.area == 0) return;
  const PoolVariant wanted = select_bn_pool(params);
  launch_from(menu(), wanted, params, queue, "bn_pool");
}

std::vector<PoolVariant> compiled_bn_pool() { return variants_of(menu()); }

}  // namespace resnet_fused::cuda
