#include "cuda/kernels/pool/bn_pool.cuh"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/pass_table.cuh"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

struct BnPool {
  using Variant = PoolVariant;
  using Params = BnPoolParams;
  template <auto... kAxes>
  using Config = BnPoolConfig<kAxes...>;

  template <Dtype kDtype, int kVector>
  static void add(PassTable<BnPool>& table) {
    if constexpr (kVector > 1) add_argmax<kDtype, kVector, 3>(table);
    add_argmax<kDtype, kVector, 0>(table);
  }

  template <Dtype kDtype, int kVector, int kWindow>
  static void add_argmax(PassTable<BnPool>& table) {
    table.add<kDtype, kVector, kWindow, true>();
    table.add<kDtype, kVector, kWindow, false>();
  }

  template <typename Config>
  static void launch(const Params& p, const Queue& queue) {
    const PoolLoop loop = pool_loop(p.shape, /*over_outputs=*/true, Config::kVector, queue.sm_count);
    LAUNCH_DEPENDENT(bn_pool_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
  }
};

}  // namespace

void launch_bn_pool(const BnPoolParams& params, const Queue& queue) {
  if (outputs_of(params.shape).empty()) return;
  launch_from(pass_table<BnPool>(), select_bn_pool(params), params, queue, "bn_pool");
}

std::vector<PoolVariant> compiled_bn_pool() { return variants_of(pass_table<BnPool>()); }

}  // namespace resnet_fused::cuda
