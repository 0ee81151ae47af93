// The explicit instantiations of a kernel over gradients: every variant that select_bn_gradient can ask for.
#pragma once
#include <vector>

#include "cuda/bn/bn_gradient.cuh"
#include "cuda/queue.h"

namespace resnet_fused::cuda {

template <typename Params>
struct CompiledBnGradient {
  BnGradientVariant variant;
  void (*launch)(const Params&, const Queue&);
};

// Launcher<Config>::launch launches its kernel; naming it compiles that.
template <typename Params, template <typename> class Launcher>
class BnGradientMenu {
 public:
  BnGradientMenu() {
    widths<Dtype::kFloat32, 4, 1>();
    widths<Dtype::kFloat16, 8, 1>();
    widths<Dtype::kBFloat16, 8, 1>();
    widths<Dtype::kFloat64, 1>();
  }

  const CompiledBnGradient<Params>* find(const BnGradientVariant& wanted) const {
    for (const CompiledBnGradient<Params>& c : all_)
      if (c.variant == wanted) return &c;
    return nullptr;
  }

  std::vector<BnGradientVariant> variants() const {
    std::vector<BnGradientVariant> v;
    for (const CompiledBnGradient<Params>& c : all_) v.push_back(c.variant);
    return v;
  }

 private:
  template <Dtype kDtype, int... kVector>
  void widths() {
    (masks<kDtype, kVector, Layout::kNHWC>(), ...);
    (masks<kDtype, kVector, Layout::kNCHW>(), ...);
  }
  template <Dtype kDtype, int kVector, Layout kLayout>
  void masks() {
    add<kDtype, kVector, kLayout, Mask::kNone>();
    add<kDtype, kVector, kLayout, Mask::kRecompute>();
    add<kDtype, kVector, kLayout, Mask::kOut>();
  }
  template <Dtype kDtype, int kVector, Layout kLayout, Mask kMask>
  void add() {
    using Config = BnGradientConfig<kDtype, kVector, kLayout, kMask>;
    all_.push_back({{kDtype, kVector, kLayout, kMask}, &Launcher<Config>::launch});
  }

  std::vector<CompiledBnGradient<Params>> all_;
};

}  // namespace resnet_fused::cuda
