#include "cuda/pool/pool_backward.cuh"

#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const PoolBackwardParams& p, const Queue& queue) {
  const PoolWalk walk = walk_pool(p.shape, /*over_outputs=*/false, Config::kVector, queue.sm_count);
  LAUNCH_DEPENDENT(pool_backward_kernel<Config>, walk.grid(), walk.block(), 0, queue, p, walk);
}

struct Compiled {
  PoolVariant variant;
  void (*launch)(const PoolBackwardParams&, const Queue&);
};

// The explicit instantiations: naming a launcher compiles its kernel.
#define VARIANT(dtype, vector, side) \
  Compiled { {dtype, vector, side}, &launch<PoolBackwardConfig<dtype, vector, side>> }
#define WIDTHS(dtype, vector) VARIANT(dtype, vector, 2), VARIANT(dtype, vector, 0), VARIANT(dtype, 1, 0)

const Compiled kCompiled[] = {
    WIDTHS(Dtype::kFloat32, 4),
    WIDTHS(Dtype::kFloat16, 8),
    WIDTHS(Dtype::kBFloat16, 8),
    VARIANT(Dtype::kFloat64, 1, 0),
};

}  // namespace

void launch_pool_backward(const PoolBackwardParams& params, const Queue& queue) {
  const BnShape walked = inputs_of(params.shape);
  if (walked.batch == 0 || walked.channels == 0 || walked.area == 0) return;
  const PoolVariant wanted = select_pool_backward(params);
  for (const Compiled& c : kCompiled)
    if (c.variant == wanted) return c.launch(params, queue);
  throw std::logic_error("pool_backward: the selected kernel is not compiled in");  // tests/test_cuda_static.py: never
}

std::vector<PoolVariant> compiled_pool_backward() {
  std::vector<PoolVariant> variants;
  for (const Compiled& c : kCompiled) variants.push_back(c.variant);
  return variants;
}

}  // namespace resnet_fused::cuda
