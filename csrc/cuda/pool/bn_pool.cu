#include "cuda/pool/bn_pool.cuh"

#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const BnPoolParams& p, const Queue& queue) {
  const PoolWalk walk = walk_pool(p.shape, /*over_outputs=*/true, Config::kVector, queue.sm_count);
  LAUNCH_DEPENDENT(bn_pool_kernel<Config>, walk.grid(), walk.block(), 0, queue, p, walk);
}

struct Compiled {
  PoolVariant variant;
  void (*launch)(const BnPoolParams&, const Queue&);
};

// The explicit instantiations: naming a launcher compiles its kernel.
#define VARIANT(dtype, vector, side, argmax) \
  Compiled { {dtype, vector, side, argmax}, &launch<BnPoolConfig<dtype, vector, side, argmax>> }
#define VARIANTS(dtype, vector, side) VARIANT(dtype, vector, side, true), VARIANT(dtype, vector, side, false)
#define WIDTHS(dtype, vector) VARIANTS(dtype, vector, 3), VARIANTS(dtype, vector, 0), VARIANTS(dtype, 1, 0)

const Compiled kCompiled[] = {
    WIDTHS(Dtype::kFloat32, 4),
    WIDTHS(Dtype::kFloat16, 8),
    WIDTHS(Dtype::kBFloat16, 8),
    VARIANTS(Dtype::kFloat64, 1, 0),
};

}  // namespace

void launch_bn_pool(const BnPoolParams& params, const Queue& queue) {
  const BnShape walked = outputs_of(params.shape);
  if (walked.batch == 0 || walked.channels == 0 || walked.area == 0) return;
  const PoolVariant wanted = select_bn_pool(params);
  for (const Compiled& c : kCompiled)
    if (c.variant == wanted) return c.launch(params, queue);
  throw std::logic_error("bn_pool: the selected kernel is not compiled in");  // tests/test_cuda_static.py: never
}

std::vector<PoolVariant> compiled_bn_pool() {
  std::vector<PoolVariant> variants;
  for (const Compiled& c : kCompiled) variants.push_back(c.variant);
  return variants;
}

}  // namespace resnet_fused::cuda
