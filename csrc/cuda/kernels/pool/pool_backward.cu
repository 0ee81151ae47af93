#include "cuda/kernels/pool/pool_backward.cuh"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/pass_table.cuh"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

struct PoolBackward {
  using Variant = PoolVariant;
  using Params = PoolBackwardParams;
  template <auto... kAxes>
  using Config = PoolBackwardConfig<kAxes...>;

  template <Dtype kDtype, int kVector>
  static void add(PassTable<PoolBackward>& table) {
    if constexpr (kVector > 1) table.add<kDtype, kVector, 2>();
    table.add<kDtype, kVector, 0>();
  }

  template <typename Config>
  static void launch(const Params& p, const Queue& queue) {
    const PoolLoop loop = pool_loop(p.shape, /*over_outputs=*/false, Config::kVector, queue.sm_count);
    LAUNCH_DEPENDENT(pool_backward_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
  }
};

}  // namespace

void launch_pool_backward(const PoolBackwardParams& params, const Queue& queue) {
  if (inputs_of(params.shape).empty()) return;
  launch_from(pass_table<PoolBackward>(), select_pool_backward(params), params, queue, "pool_backward");
}

std::vector<PoolVariant> compiled_pool_backward() { return variants_of(pass_table<PoolBackward>()); }

}  // namespace resnet_fused::cuda
