#include "cuda/kernels/pool/bn_pool.cuh"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/pool/pool_table.cuh"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

struct BnPool {
  using Params = BnPoolParams;
  static constexpr int kWindow = 3;
  static constexpr bool kWithoutArgmax = true;

  template <Dtype kDtype, int kVector, int kWindow, bool kArgmax>
  using Config = BnPoolConfig<kDtype, kVector, kWindow, kArgmax>;

  template <typename Config>
  static void launch(const Params& p, const Queue& queue) {
    const PoolLoop loop = pool_loop(p.shape, /*over_outputs=*/true, Config::kVector, queue.sm_count);
    LAUNCH_DEPENDENT(bn_pool_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
  }
};

const PoolTable<BnPool>& table() {
  static const PoolTable<BnPool> all;
  return all;
}

}  // namespace

void launch_bn_pool(const BnPoolParams& params, const Queue& queue) {
  table().launch("bn_pool", select_bn_pool(params), outputs_of(params.shape), params, queue);
}

std::vector<PoolVariant> compiled_bn_pool() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
