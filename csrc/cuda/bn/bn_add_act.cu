#include "cuda/bn/bn_add_act.cuh"

#include <stdexcept>

#include "cuda/kernels.h"
#include "cuda/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const BnAddActParams& p, const Queue& queue) {
  const BnWalk walk = walk_bn_add_act(p, Config::kVector, queue.sm_count);
  LAUNCH_DEPENDENT(bn_add_act_kernel<Config>, walk.grid(), walk.block(), 0, queue, p, walk);
}

struct Compiled {
  BnAddActVariant variant;
  void (*launch)(const BnAddActParams&, const Queue&);
};

// The explicit instantiations: naming a launcher compiles its kernel.
#define VARIANT(dtype, vector, layout, shortcut) \
  Compiled { {dtype, vector, layout, shortcut}, &launch<BnAddActConfig<dtype, vector, layout, shortcut>> }
#define SHORTCUTS(dtype, vector, layout)                                                           \
  VARIANT(dtype, vector, layout, Shortcut::kNone), VARIANT(dtype, vector, layout, Shortcut::kAdd), \
      VARIANT(dtype, vector, layout, Shortcut::kProjected)
#define LAYOUTS(dtype, vector) SHORTCUTS(dtype, vector, Layout::kNHWC), SHORTCUTS(dtype, vector, Layout::kNCHW)

const Compiled kCompiled[] = {
    LAYOUTS(Dtype::kFloat32, 4), LAYOUTS(Dtype::kFloat32, 1),  LAYOUTS(Dtype::kFloat16, 8),
    LAYOUTS(Dtype::kFloat16, 1), LAYOUTS(Dtype::kBFloat16, 8), LAYOUTS(Dtype::kBFloat16, 1),
    LAYOUTS(Dtype::kFloat64, 1),
};

}  // namespace

void launch_bn_add_act(const BnAddActParams& params, const Queue& queue) {
  if (params.batch == 0 || params.channels == 0 || params.area == 0) return;
  const BnAddActVariant wanted = select_bn_add_act(params);
  for (const Compiled& c : kCompiled)
    if (c.variant == wanted) return c.launch(params, queue);
  throw std::logic_error("bn_add_act: the selected kernel is not compiled in");  // tests/test_cuda_static.py: never
}

std::vector<BnAddActVariant> compiled_bn_add_act() {
  std::vector<BnAddActVariant> variants;
  for (const Compiled& c : kCompiled) variants.push_back(c.variant);
  return variants;
}

}  // namespace resnet_fused::cuda
