// The table of a pass over activations: of each dtype kernels with 16-byte accesses and with single elements.
#pragma once
#include "cuda/kernels/bn/grid_stride.h"
#include "cuda/kernels/kernel_table.h"

namespace resnet_fused::cuda {

// A Kernel has Variant; Params; Config<kDtype, kVector, axes...>; launch<Config>(params, queue); and
// add<kDtype, kVector>(table), which calls table.add for every value of the other axes.
template <typename Kernel>
class PassTable : public KernelTable<typename Kernel::Variant, typename Kernel::Params> {
 public:
  PassTable() {
    add_widths<Dtype::kFloat32>();
    add_widths<Dtype::kFloat16>();
    add_widths<Dtype::kBFloat16>();
    add_widths<Dtype::kFloat64>();
  }

  // Taking the launcher's address compiles the kernel.
  template <Dtype kDtype, int kVector, auto... kAxes>
  void add() {
    constexpr typename Kernel::Variant kVariant{kDtype, kVector, kAxes...};
    if constexpr (COMPILES(kVariant))
      this->push_back(
          {kVariant, &Kernel::template launch<typename Kernel::template Config<kDtype, kVector, kAxes...>>});
  }

 private:
  template <Dtype kDtype>
  void add_widths() {
    constexpr int kWidest = widest_vector(kDtype);
    Kernel::template add<kDtype, kWidest>(*this);
    if constexpr (kWidest > 1) Kernel::template add<kDtype, 1>(*this);
  }
};

template <typename Kernel>
const PassTable<Kernel>& pass_table() {
  static const PassTable<Kernel> table;
  return table;
}

}  // namespace resnet_fused::cuda
