#include "cuda/kernels/bn/bn_finish.cuh"

#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

// kSum is the dtype of the partial sums. kDtype is the activations' dtype, which `var` of kSums may have.
template <Dtype kSum, Parts kParts, Dtype kDtype = kSum>
void finish(BnFinishParams p, const Queue& queue) {
  const auto ceil_div = [](int32_t a, int32_t b) { return (a + b - 1) / b; };
  const int32_t groups = ceil_div(p.parts.channels, kFinishChannels);
  BnParts& parts = p.parts;
  using Merge = BnFinishConfig<kSum, kParts, false>;
  using Last = BnFinishConfig<kDtype, kParts, true>;
  while (merges_first(parts.parts)) {
    char* const merged = static_cast<char*>(parts.data) + parts.bytes();
    const int32_t left = ceil_div(parts.parts, kMergedParts);
    LAUNCH_DEPENDENT(bn_finish_kernel<Merge>, dim3(groups, left), dim3(Merge::kThreads), Merge::kSharedBytes, queue, p,
                     static_cast<void*>(merged));
    parts.data = merged, parts.parts = left, parts.each *= kMergedParts;
  }
  LAUNCH_DEPENDENT(bn_finish_kernel<Last>, dim3(groups), dim3(Last::kThreads), Last::kSharedBytes, queue, p,
                   static_cast<void*>(nullptr));
}

}  // namespace

void launch_bn_finish(const BnFinishParams& params, const Queue& queue) {
  if (params.parts.channels == 0) return;
  const Dtype dtype = params.parts.dtype;
  constexpr Dtype kFloat = Dtype::kFloat32, kDouble = Dtype::kFloat64;
  if (params.parts.what == Parts::kMoments)
    return dtype == kDouble ? finish<kDouble, Parts::kMoments>(params, queue)
                            : finish<kFloat, Parts::kMoments>(params, queue);
  switch (dtype) {
    case Dtype::kFloat16:
      return finish<kFloat, Parts::kSums, Dtype::kFloat16>(params, queue);
    case Dtype::kBFloat16:
      return finish<kFloat, Parts::kSums, Dtype::kBFloat16>(params, queue);
    case Dtype::kFloat64:
      return finish<kDouble, Parts::kSums>(params, queue);
    case Dtype::kFloat32:
      return finish<kFloat, Parts::kSums>(params, queue);
  }
}

}  // namespace resnet_fused::cuda
