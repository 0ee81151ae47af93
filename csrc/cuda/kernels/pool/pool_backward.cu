#include "cuda/kernels/pool/pool_backward.cuh"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/pool/pool_table.cuh"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

struct PoolBackward {
  using Params = PoolBackwardParams;
  static constexpr int kWindow = 2;
  static constexpr bool kWithoutArgmax = false;

  template <Dtype kDtype, int kVector, int kWindow, bool>
  using Config = PoolBackwardConfig<kDtype, kVector, kWindow>;

  template <typename Config>
  static void launch(const Params& p, const Queue& queue) {
    const PoolLoop loop = pool_loop(p.shape, /*over_outputs=*/false, Config::kVector, queue.sm_count);
    LAUNCH_DEPENDENT(pool_backward_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
  }
};

const PoolTable<PoolBackward>& table() {
  static const PoolTable<PoolBackward> all;
  return all;
}

}  // namespace

void launch_pool_backward(const PoolBackwardParams& params, const Queue& queue) {
  table().launch("pool_backward", select_pool_backward(params), inputs_of(params.shape), params, queue);
}

std::vector<PoolVariant> compiled_pool_backward() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
