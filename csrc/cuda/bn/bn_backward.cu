#include "cuda/bn/bn_backward.cuh"

#include "cuda/bn/bn_gradient_variants.cuh"
#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
struct Launcher {
  static void launch(const BnBackwardParams& p, const Queue& queue) {
    const BnWalk walk = walk_bn_backward(p.from.shape, Config::kVector, queue.sm_count);
    LAUNCH_DEPENDENT(bn_backward_kernel<Config>, walk.grid(), walk.block(), 0, queue, p, walk);
  }
};

const BnGradientMenu<BnBackwardParams, Launcher>& menu() {
  static const BnGradientMenu<BnBackwardParams, Launcher> all;
  return all;
}

}  // namespace

void launch_bn_backward(const BnBackwardParams& params, const Queue& queue) {
  const BnShape& shape = params.from.shape;
  if (shape.batch == 0 || shape.channels == 0 || shape.area == 0) return;
  launch_from(menu(), select_bn_gradient(params.from, params.to), params, queue, "bn_backward");
}

std::vector<BnGradientVariant> compiled_bn_backward() { return variants_of(menu()); }

}  // namespace resnet_fused::cuda
