// Weak defaults for the kernels that a library leaves out. A library contains the kernels of one source: the tables of
// all others are empty, and their launchers throw. The linker prefers a library's real definitions.
#include <stdexcept>

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/tables.h"

#define TABLE(type, name) \
  __attribute__((weak)) type name() { return {}; }
#define VARIANTS(type, name) TABLE(std::vector<type>, name)
#define LAUNCHER(name, ...) \
  __attribute__((weak)) void name(__VA_ARGS__) { throw std::logic_error(#name " is not in this library"); }

namespace resnet_fused::cuda {

TABLE(ConvTable, conv_fwd_f16)
TABLE(ConvTable, conv_fwd_bf16)
TABLE(ConvTable, conv_fwd_tf32)
TABLE(ConvTable, conv_stats_f16)
TABLE(ConvTable, conv_stats_bf16)
TABLE(ConvTable, conv_stats_tf32)
TABLE(ConvTable, conv_gradient_f16)
TABLE(ConvTable, conv_gradient_bf16)
TABLE(ConvTable, conv_gradient_tf32)
TABLE(ConvTable, conv_sm90_f16)
TABLE(ConvTable, conv_sm90_bf16)
TABLE(ConvTable, conv_sm90_stats_f16)
TABLE(ConvTable, conv_sm90_stats_bf16)
TABLE(ConvTable, conv_rows_f16)
TABLE(ConvTable, conv_rows_bf16)
TABLE(BlockFwdTable, block_fwd_f16)
TABLE(BlockFwdTable, block_fwd_bf16)

VARIANTS(BnAddActVariant, compiled_bn_add_act)
VARIANTS(BnStatsVariant, compiled_bn_stats)
VARIANTS(BnGradientVariant, compiled_bn_backward_reduce)
VARIANTS(BnGradientVariant, compiled_bn_backward)
VARIANTS(PoolVariant, compiled_bn_pool)
VARIANTS(PoolVariant, compiled_pool_backward)
VARIANTS(BlockFwdVariant, compiled_block_fwd)

LAUNCHER(launch_bn_add_act, const BnAddActParams&, const Queue&)
LAUNCHER(launch_bn_stats, const BnStatsParams&, const Queue&)
LAUNCHER(launch_bn_backward_reduce, const BnBackwardReduceParams&, const Queue&)
LAUNCHER(launch_bn_backward, const BnBackwardParams&, const Queue&)
LAUNCHER(launch_bn_finish, const BnFinishParams&, const Queue&)
LAUNCHER(launch_bn_pool, const BnPoolParams&, const Queue&)
LAUNCHER(launch_pool_backward, const PoolBackwardParams&, const Queue&)
#define ABSENT(engine, kernel)                \
  VARIANTS(ConvFwdVariant, compiled_##kernel) \
  LAUNCHER(launch_##kernel, const ConvFwdParams&, const ConvFwdVariant&, const Queue&)
CONV_KERNELS(ABSENT)
LAUNCHER(launch_conv_finish, const ConvFwdParams&, const ConvFwdVariant&, const Queue&)
LAUNCHER(launch_conv_sm90_finish, const ConvFwdParams&, const ConvFwdVariant&, const Queue&)
LAUNCHER(launch_block_fwd, const BlockFwdParams&, const BlockFwdVariant&, const Queue&)

}  // namespace resnet_fused::cuda
