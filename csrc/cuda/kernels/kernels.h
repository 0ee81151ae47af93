// The launchers. launch_* picks the compiled variant and launches it on queue.stream; it neither waits nor allocates.
#pragma once
#include <vector>

#include "cuda/kernels/bn/bn_add_act.h"
#include "cuda/kernels/bn/bn_finish.h"
#include "cuda/kernels/bn/bn_gradient.h"
#include "cuda/kernels/bn/bn_stats.h"
#include "cuda/kernels/conv.h"
#include "cuda/kernels/pool/pool.h"
#include "cuda/kernels/sm90/block_fwd.h"
#include "cuda/runtime/queue.h"

namespace resnet_fused::cuda {

void launch_bn_add_act(const BnAddActParams& params, const Queue& queue);
std::vector<BnAddActVariant> compiled_bn_add_act();

// Training. Both reductions launch two kernels: partial sums, then bn_finish, which adds them in a fixed order.
void launch_bn_stats(const BnStatsParams& params, const Queue& queue);
std::vector<BnStatsVariant> compiled_bn_stats();

void launch_bn_backward_reduce(const BnBackwardReduceParams& params, const Queue& queue);
std::vector<BnGradientVariant> compiled_bn_backward_reduce();

void launch_bn_backward(const BnBackwardParams& params, const Queue& queue);
std::vector<BnGradientVariant> compiled_bn_backward();

// max_pool2d(relu(bn(x))), in training and inference, and its gradient.
void launch_bn_pool(const BnPoolParams& params, const Queue& queue);
std::vector<PoolVariant> compiled_bn_pool();

void launch_pool_backward(const PoolBackwardParams& params, const Queue& queue);
std::vector<PoolVariant> compiled_pool_backward();

// One kernel. If there are too many parts for one block, more kernels merge them first.
void launch_bn_finish(const BnFinishParams& params, const Queue& queue);

// Convolutions. sm80/conv_fwd with params.splits > 1, and sm90/conv_sm90 with params.sk_units > 0, launch two kernels:
// one that leaves partial sums, and the finishing kernel, which adds them in a fixed order. sm90/ runs on Hopper only.
// conv_rows_takes() accepts the shape that conv_rows gets; a variant's tile is rows x columns of pixels there.
#define DECLARE(engine, kernel)                                                                         \
  void launch_##kernel(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue); \
  std::vector<ConvFwdVariant> compiled_##kernel();
CONV_KERNELS(DECLARE)
#undef DECLARE

// out = act(bn(sum of the partials) + shortcut): of split-K slices, and of the work units of each stream-K tile. They
// are added in order, so results are bit-reproducible.
void launch_conv_finish(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue);
void launch_conv_sm90_finish(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue);

// Hopper only: a whole identity BasicBlock.
void launch_block_fwd(const BlockFwdParams& params, const BlockFwdVariant& variant, const Queue& queue);
std::vector<BlockFwdVariant> compiled_block_fwd();

}  // namespace resnet_fused::cuda
