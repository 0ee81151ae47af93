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
  Dtype dtype = Dtype::kFloat32;
  Layout layout = Layout::kNHWC;
  int32_t batch = 0;     // N
  int32_t channels = 0;  // C
  int32_t area = 0;      // H * W; N * C * H * W < 2^31
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

inline BnShape shape_of(const BnAddActParams& p) { return {p.dtype, p.layout, p.batch, p.channels, p.area}; }

inline BnAddActVariant select_bn_add_act(const BnAddActParams& p) {
  const auto addresses =
      reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.out) | reinterpret_cast<uintptr_t>(p.shortcut);
  const Shortcut shortcut = !p.shortcut ? Shortcut::kNone : p.projected ? Shortcut::kProjected : Shortcut::kAdd;
  return {p.dtype, vector_of(shape_of(p), addresses), p.layout, shortcut};
}

constexpr uint32_t kBnAddActBlocksPerSm = 8;

inline GridStrideLoop bn_add_act_loop(const BnAddActParams& p, int vector, int sm_count) {
  return loop_over_activations(shape_of(p), vector, kBnThreads, sm_count * kBnAddActBlocksPerSm);
}

}  // namespace resnet_fused::cuda
