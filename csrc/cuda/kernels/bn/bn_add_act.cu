#include "cuda/kernels/bn/bn_add_act.cuh"

#include "cuda/kernels/kernels.h"
#include "cuda/kernels/pass_table.cuh"
#include "cuda/runtime/launch.h"

namespace resnet_fused::cuda {

namespace {

struct BnAddAct {
  using Variant = BnAddActVariant;
  using Params = BnAddActParams;
  template <auto... kAxes>
  using Config = BnAddActConfig<kAxes...>;

  template <Dtype kDtype, int kVector>
  static void add(PassTable<BnAddAct>& table) {
    add_shortcuts<kDtype, kVector, Layout::kNHWC>(table);
    add_shortcuts<kDtype, kVector, Layout::kNCHW>(table);
  }

  template <Dtype kDtype, int kVector, Layout kLayout>
  static void add_shortcuts(PassTable<BnAddAct>& table) {
    table.add<kDtype, kVector, kLayout, Shortcut::kNone>();
    table.add<kDtype, kVector, kLayout, Shortcut::kAdd>();
    table.add<kDtype, kVector, kLayout, Shortcut::kProjected>();
  }

  template <typename Config>
  static void launch(const Params& p, const Queue& queue) {
    const GridStrideLoop loop = bn_add_act_loop(p.shape, Config::kVector, queue.sm_count);
    LAUNCH_DEPENDENT(bn_add_act_kernel<Config>, loop.grid(), loop.block(), 0, queue, p, loop);
  }
};

}  // namespace

void launch_bn_add_act(const BnAddActParams& params, const Queue& queue) {
  if (params.shape.empty()) return;
  launch_from(pass_table<BnAddAct>(), select_bn_add_act(params), params, queue, "bn_add_act");
}

std::vector<BnAddActVariant> compiled_bn_add_act() { return variants_of(pass_table<BnAddAct>()); }

}  // namespace resnet_fused::cuda
