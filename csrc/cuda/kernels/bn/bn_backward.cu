#include "cuda/kernels/bn/bn_backward.cuh"

#include "cuda/kernels/bn/bn_gradient_variants.cuh"
#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

struct BnBackward : BnGradientVariants<BnBackward> {
  using Params = BnBackwardParams;

  template <typename Config>
  static void launch(const Params& p, const Queue& queue) {
    const GridStrideLoop loop = bn_backward_loop(p.from.shape, Config::kVector, queue.sm_count);
    LAUNCH_DEPENDENT(bn_backward_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
  }
};

}  // namespace

void launch_bn_backward(const BnBackwardParams& params, const Queue& queue) {
  if (params.from.shape.empty()) return;
  launch_from(pass_table<BnBackward>(), select_bn_gradient(params.from, params.to), params, queue, "bn_backward");
}

std::vector<BnGradientVariant> compiled_bn_backward() { return variants_of(pass_table<BnBackward>()); }

}  // namespace resnet_fused::cuda
