#include "cuda/kernels/bn/bn_add_act.cuh"

#include "cuda/kernels/kernel_table.h"
#include "cuda/kernels/kernels.h"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

template <typename Config>
void launch(const BnAddActParams& p, const Queue& queue) {
  const GridStrideLoop loop = bn_add_act_loop(p, Config::kVector, queue.sm_count);
  LAUNCH_DEPENDENT(bn_add_act_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
}

using BnAddActTable = KernelTable<BnAddActVariant, BnAddActParams>;

// Explicit instantiations: taking a launcher's address compiles its kernel.
template <Dtype kDtype, int kVector, Layout kLayout, Shortcut kShortcut>
void add(BnAddActTable& all) {
  constexpr BnAddActVariant kVariant{kDtype, kVector, kLayout, kShortcut};
  if constexpr (COMPILES(kVariant))
    all.push_back({kVariant, &launch<BnAddActConfig<kDtype, kVector, kLayout, kShortcut>>});
}

template <Dtype kDtype, int kVector, Layout kLayout>
void add_shortcuts(BnAddActTable& all) {
  add<kDtype, kVector, kLayout, Shortcut::kNone>(all);
  add<kDtype, kVector, kLayout, Shortcut::kAdd>(all);
  add<kDtype, kVector, kLayout, Shortcut::kProjected>(all);
}

template <Dtype kDtype, int... kVector>
void add_widths(BnAddActTable& all) {
  (add_shortcuts<kDtype, kVector, Layout::kNHWC>(all), ...);
  (add_shortcuts<kDtype, kVector, Layout::kNCHW>(all), ...);
}

const BnAddActTable& table() {
  static const BnAddActTable all = [] {
    BnAddActTable m;
    add_widths<Dtype::kFloat32, 4, 1>(m);
    add_widths<Dtype::kFloat16, 8, 1>(m);
    add_widths<Dtype::kBFloat16, 8, 1>(m);
    add_widths<Dtype::kFloat64, 1>(m);
    return m;
  }();
  return all;
}

}  // namespace

void launch_bn_add_act(const BnAddActParams& params, const Queue& queue) {
  if (params.batch == 0 || params.channels == 0 || params.area == 0) return;
  const BnAddActVariant wanted = select_bn_add_act(params);
  launch_from(table(), wanted, params, queue, "bn_add_act");
}

std::vector<BnAddActVariant> compiled_bn_add_act() { return variants_of(table()); }

}  // namespace resnet_fused::cuda
