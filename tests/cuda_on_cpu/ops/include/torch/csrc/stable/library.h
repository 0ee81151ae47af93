// Redirects torch's registration macros: ops that csrc registers as resnet_fused for CUDA tensors are registered as
// cuda_on_cpu::library_name for CPU tensors, next to the real library. Each op also measures the time spent inside.
#pragma once
#include_next <torch/csrc/stable/library.h>

#include "ops/name.h"
#include "ops/timed.h"

#undef STABLE_TORCH_LIBRARY
#undef STABLE_TORCH_LIBRARY_IMPL

#define ON_CPU_KEY_CUDA "CPU"
#define ON_CPU_KEY_CompositeExplicitAutograd "CompositeExplicitAutograd"

#define ON_CPU_REGISTER_AS(kind, key, m, init)                                                                      \
  static void init(torch::stable::detail::StableLibrary&);                                                          \
  static const torch::stable::detail::StableTorchLibraryInit init##_done(                                           \
      torch::stable::detail::StableLibrary::Kind::kind, &init, cuda_on_cpu::library_name, key, __FILE__, __LINE__); \
  void init(torch::stable::detail::StableLibrary& m)
// Indirection that expands __COUNTER__ before it is pasted.
#define ON_CPU_REGISTER(kind, key, m, number) ON_CPU_REGISTER_AS(kind, key, m, on_cpu_init_##number)
#define ON_CPU_NUMBERED(kind, key, m, number) ON_CPU_REGISTER(kind, key, m, number)

#define STABLE_TORCH_LIBRARY(ns, m) ON_CPU_NUMBERED(FRAGMENT, nullptr, m, __COUNTER__)
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m) ON_CPU_NUMBERED(IMPL, ON_CPU_KEY_##key, m, __COUNTER__)

#undef TORCH_BOX
#define TORCH_BOX(func) \
  cuda_on_cpu::timed<   \
      torch::stable::detail::boxer<std::remove_pointer_t<std::remove_reference_t<decltype(func)>>, (func)>::boxed_fn>
