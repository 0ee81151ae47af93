#include "cuda/kernels/sm80/conv_finish.cuh"

#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

template <Dtype kDtype, bool kProjects>
void launch(const ConvFwdParams& p, const Queue& queue) {
  using Config = ConvFinishConfig<kDtype, kProjects>;
  const auto& shape = p.main.shape;
  const BnShape out{kDtype, Layout::kNHWC, shape.n, shape.k, shape.p * shape.q};
  const GridStrideLoop loop = bn_add_act_loop(out, Config::kVector, queue.sm_count);
  LAUNCH_DEPENDENT(conv_finish_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
}

template <Dtype kDtype>
void launch(const ConvFwdParams& p, bool projects, const Queue& queue) {
  projects ? launch<kDtype, true>(p, queue) : launch<kDtype, false>(p, queue);
}

}  // namespace

void launch_conv_finish(const ConvFwdParams& params, const ConvFwdVariant& variant, const Queue& queue) {
  const bool projects = has_projection(variant.mode);
  switch (variant.dtype) {
    case Dtype::kFloat16:
      return launch<Dtype::kFloat16>(params, projects, queue);
    case Dtype::kBFloat16:
      return launch<Dtype::kBFloat16>(params, projects, queue);
    default:  // conv_fwd has no other dtype
      return launch<Dtype::kFloat32>(params, projects, queue);
  }
}

}  // namespace resnet_fused::cuda
