// What the kernels over gradients tell their tables: every variant that select_bn_gradient can return.
#pragma once
#include "cuda/kernels/bn/bn_gradient.cuh"
#include "cuda/kernels/pass_table.cuh"

namespace resnet_fused::cuda {

// Kernel: the class that derives from this one.
template <typename Kernel>
struct BnGradientVariants {
  using Variant = BnGradientVariant;
  template <auto... kAxes>
  using Config = BnGradientConfig<kAxes...>;

  template <Dtype kDtype, int kVector>
  static void add(PassTable<Kernel>& table) {
    add_masks<kDtype, kVector, Layout::kNHWC>(table);
    add_masks<kDtype, kVector, Layout::kNCHW>(table);
  }

  template <Dtype kDtype, int kVector, Layout kLayout>
  static void add_masks(PassTable<Kernel>& table) {
    table.template add<kDtype, kVector, kLayout, Mask::kNone>();
    table.template add<kDtype, kVector, kLayout, Mask::kRecompute>();
    table.template add<kDtype, kVector, kLayout, Mask::kOut>();
  }
};

}  // namespace resnet_fused::cuda
