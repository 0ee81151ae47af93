#include "cuda/kernels/bn/bn_backward_reduce.cuh"

#include "cuda/kernels/bn/bn_gradient_variants.cuh"
#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

struct BnBackwardReduce : BnGradientVariants<BnBackwardReduce> {
  using Params = BnBackwardReduceParams;

  template <typename Config>
  static void launch(const Params& p, const Queue& queue) {
    const BnReduction loop = reduce_activations(p.from.shape, Config::kVector, queue.sm_count);
    const int32_t smem = loop.block() * Config::kValues * sizeof(double);
    LAUNCH_DEPENDENT(bn_backward_reduce_kernel<Config>, loop.grid(), loop.block(), smem, queue, p, loop);
  }
};

}  // namespace

void launch_bn_backward_reduce(const BnBackwardReduceParams& params, const Queue& queue) {
  const BnGradientVariant wanted = select_bn_gradient(params.from, params.masked_grad);
  BnFinishParams last;
  last.parts = parts_of(Parts::kSums, params.from.shape, wanted.vector, queue.sm_count, params.workspace);
  last.first = params.sum_g, last.second = params.sum_g_xhat;
  last.var = params.from.bn.var, last.eps = params.from.bn.eps;
  if (last.parts.parts > 0) launch_from(pass_table<BnBackwardReduce>(), wanted, params, queue, "bn_backward_reduce");
  launch_bn_finish(last, queue);
}

std::vector<BnGradientVariant> compiled_bn_backward_reduce() { return variants_of(pass_table<BnBackwardReduce>()); }

}  // namespace resnet_fused::cuda
