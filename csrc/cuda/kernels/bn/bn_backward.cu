#include "cuda/kernels/bn/bn_backward.cuh"

#include "cuda/kernels/bn/bn_gradient_variants.cuh"
#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
struct Launcher {
  static void launch(const BnBackwardParams& p, const Queue& queue) {
    const GridStrideLoop loop = bn_backward_loop(p.from.shape, Config::kVector, queue.sm_count);
    LAUNCH_DEPENDENT(bn_backward_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
  }
};

const BnGradientTable<BnBackwardParams, Launcher>& table() {
  static const BnGradientTable<BnBackwardParams, Launcher> all;
  return all;
}

}  // namespace

void launch_bn_backward(const BnBackwardParams& params, const Queue& queue) {
  const BnShape& shape = params.from.shape;
  if (shape.batch == 0 || shape.channels == 0 || shape.area == 0) return;
  launch_from(table(), select_bn_gradient(params.from, params.to), params, queue, "bn_backward");
}

std::vector<BnGradientVariant> compiled_bn_backward() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
