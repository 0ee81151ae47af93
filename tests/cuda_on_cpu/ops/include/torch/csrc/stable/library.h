// torch's macros under another name and key: what csrc registers for CUDA tensors as resnet_fused is registered here
// for CPU tensors as ON_CPU_LIBRARY, beside the real library.
#pragma once
#include_next <torch/csrc/stable/library.h>

#undef STABLE_TORCH_LIBRARY
#undef STABLE_TORCH_LIBRARY_IMPL

// A macro in between, so that names are replaced before they are pasted.
#define ON_CPU_DEF(ns, m) STABLE_TORCH_LIBRARY_FRAGMENT(ns, m)
#define ON_CPU_IMPL(ns, key, m, uid) _STABLE_TORCH_LIBRARY_IMPL(ns, key, m, uid)
#define ON_CPU_KEY_CUDA CPU
#define ON_CPU_KEY_CompositeExplicitAutograd CompositeExplicitAutograd

#define STABLE_TORCH_LIBRARY(ns, m) ON_CPU_DEF(ON_CPU_LIBRARY, m)
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) ON_CPU_IMPL(ON_CPU_LIBRARY, ON_CPU_KEY_##key, m, C10_UID)

#ifdef ON_CPU_TIMED
#include "ops/timed.h"
#undef TORCH_BOX
#define TORCH_BOX(func) \
  cuda_on_cpu::timed<   \
      torch::stable::detail::boxer<std::remove_pointer_t<std::remove_reference_t<decltype(func)>>, (func)>::boxed_fn>
#endif
