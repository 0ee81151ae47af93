// bn_add_act on the host: parameters, variant selection, grid. Pure: no torch, no CUDA.
#pragma once
#include <cstdint>

#include "cuda/device/types.h"
#include "cuda/kernels/bn/grid_stride.h"

namespace resnet_fused::cuda {

enum class Shortcut : int32_t { kNone, kAdd, kProjected };

// out = act(bn(x) + shortcut), or act(bn(x) + shortcut_bn(shortcut)). All three tensors are dense and share dtype and
// layout. out may be x itself; the shortcut overlaps neither.
struct BnAddActParams {
  const void* x = nullptr;
  const void* shortcut = nullptr;  // null: none
  void* out = nullptr;
  BatchNormVectors bn;
  BatchNormVectors shortcut_bn;  // used only if `projected`
  bool projected = false;        // the shortcut is the pre-BN output of a projection
  bool relu = false;
  BnShape shape;
};

// Identifies a compiled kernel.
struct BnAddActVariant {
  Dtype dtype;
  int32_t vector;  // elements per access: 16 bytes, or one element
  Layout layout;
  Shortcut shortcut;

  bool operator==(const BnAddActVariant& o) const {
    return dtype == o.dtype && vector == o.vector && layout == o.layout && shortcut == o.shortcut;
  }
};

inline BnAddActVariant select_bn_add_act(const BnAddActParams& p) {
  const auto addresses =
      reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.out) | reinterpret_cast<uintptr_t>(p.shortcut);
  const Shortcut shortcut = !p.shortcut ? Shortcut::kNone : p.projected ? Shortcut::kProjected : Shortcut::kAdd;
  return {p.shape.dtype, vector_of(p.shape, addresses), p.shape.layout, shortcut};
}

constexpr uint32_t kBnAddActBlocksPerSm = 8;

inline GridStrideLoop bn_add_act_loop(const BnShape& s, int vector, int sm_count) {
  return loop_over_activations(s, vector, kBnThreads, sm_count * kBnAddActBlocksPerSm);
}

}  // namespace resnet_fused::cuda
