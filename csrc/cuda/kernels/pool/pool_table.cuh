// The compiled variants of a pooling kernel, and their launch: one skeleton for forward and backward.
#pragma once
#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/pool/pool.h"

namespace resnet_fused::cuda {

// Kernel has Params; kWindow, the window that it has a kernel of its own for; kWithoutArgmax, whether there are kernels
// without an argmax; Config; and launch<Config>(), whose address compiles the kernel.
template <typename Kernel>
class PoolTable : public KernelTable<PoolVariant, typename Kernel::Params> {
 public:
  PoolTable() {
    widths<Dtype::kFloat32, 4>();
    widths<Dtype::kFloat16, 8>();
    widths<Dtype::kBFloat16, 8>();
    windows<Dtype::kFloat64, 1, 0>();
  }

  // `over`: the pixels that the kernel loops over.
  void launch(const char* name, const PoolVariant& wanted, const BnShape& over, const typename Kernel::Params& params,
              const Queue& queue) const {
    if (over.batch == 0 || over.channels == 0 || over.area == 0) return;
    launch_from(*this, wanted, params, queue, name);
  }

 private:
  template <Dtype kDtype, int kVector>
  void widths() {
    windows<kDtype, kVector, Kernel::kWindow, 0>();
    windows<kDtype, 1, 0>();
  }

  template <Dtype kDtype, int kVector, int... kWindow>
  void windows() {
    (add<kDtype, kVector, kWindow, true>(), ...);
    if constexpr (Kernel::kWithoutArgmax) (add<kDtype, kVector, kWindow, false>(), ...);
  }

  template <Dtype kDtype, int kVector, int kWindow, bool kArgmax>
  void add() {
    constexpr PoolVariant kVariant{kDtype, kVector, kWindow, kArgmax};
    if constexpr (COMPILES(kVariant))
      this->push_back(
          {kVariant, &Kernel::template launch<typename Kernel::template Config<kDtype, kVector, kWindow, kArgmax>>});
  }
};

}  // namespace resnet_fused::cuda
