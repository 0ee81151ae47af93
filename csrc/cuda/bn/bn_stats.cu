#include "cuda/bn/bn_stats.cuh"

#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const BnStatsParams& p, const Queue& queue) {
  const BnReduction walk = reduce_activations(p.shape, Config::kVector, queue.sm_count);
  const int32_t smem = walk.block() * Config::kValues * sizeof(double);
  LAUNCH_DEPENDENT(bn_stats_kernel<Config>, walk.grid(), walk.block(), smem, queue, p, walk);
}

struct Compiled {
  BnStatsVariant variant;
  void (*launch)(const BnStatsParams&, const Queue&);
};

// The explicit instantiations: naming a launcher compiles its kernel.
#define VARIANT(dtype, vector, layout) \
  Compiled { {dtype, vector, layout}, &launch<BnStatsConfig<dtype, vector, layout>> }
#define LAYOUTS(dtype, vector) VARIANT(dtype, vector, Layout::kNHWC), VARIANT(dtype, vector, Layout::kNCHW)

const Compiled kCompiled[] = {
    LAYOUTS(Dtype::kFloat32, 4), LAYOUTS(Dtype::kFloat32, 1),  LAYOUTS(Dtype::kFloat16, 8),
    LAYOUTS(Dtype::kFloat16, 1), LAYOUTS(Dtype::kBFloat16, 8), LAYOUTS(Dtype::kBFloat16, 1),
    LAYOUTS(Dtype::kFloat64, 1),
};

}  // namespace

void launch_bn_stats(const BnStatsParams& params, const Queue& queue) {
  const BnStatsVariant wanted = select_bn_stats(params);
  BnFinishParams last;
  last.parts = parts_of(Parts::kMoments, params.shape, wanted.vector, queue.sm_count, params.workspace);
  last.first = params.mean, last.second = params.var;
  if (last.parts.parts > 0) {
    const Compiled* found = nullptr;
    for (const Compiled& c : kCompiled)
      if (c.variant == wanted) found = &c;
    if (!found) throw std::logic_error("bn_stats: the selected kernel is not compiled in");  // a test: never
    found->launch(params, queue);
  }
  launch_bn_finish(last, queue);
}

std::vector<BnStatsVariant> compiled_bn_stats() {
  std::vector<BnStatsVariant> variants;
  for (const Compiled& c : kCompiled) variants.push_back(c.variant);
  return variants;
}

}  // namespace resnet_fused::cuda
