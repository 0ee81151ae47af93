// Explicit instantiations of a kernel over gradients: every variant that select_bn_gradient can return.
#pragma once
#include "cuda/kernels/bn/bn_gradient.cuh"
#include "cuda/kernels/kernel_table.h"

namespace resnet_fused::cuda {

// Launcher<Config>::launch launches the kernel; taking its address compiles the kernel.
template <typename Params, template <typename> class Launcher>
class BnGradientTable : public KernelTable<BnGradientVariant, Params> {
 public:
  BnGradientTable() {
    widths<Dtype::kFloat32, 4, 1>();
    widths<Dtype::kFloat16, 8, 1>();
    widths<Dtype::kBFloat16, 8, 1>();
    widths<Dtype::kFloat64, 1>();
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
    constexpr BnGradientVariant kVariant{kDtype, kVector, kLayout, kMask};
    if constexpr (COMPILES(kVariant))
      this->push_back({kVariant, &Launcher<BnGradientConfig<kDtype, kVector, kLayout, kMask>>::launch});
  }
};

}  // namespace resnet_fused::cuda
