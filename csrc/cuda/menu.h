// The compiled kernels of a family, by variant: what can be selected is what is compiled.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/queue.h"

// Whether a menu has variant v, a constant: always. The tests' emulator compiles fewer where a test launches few.
#ifndef COMPILES
#define COMPILES(v) true
#endif

namespace resnet_fused::cuda {

template <typename Variant, typename Params>
struct Compiled {
  Variant variant;
  void (*launch)(const Params&, const Queue&);
};

template <typename Variant, typename Params>
using Menu = std::vector<Compiled<Variant, Params>>;

// name: of the kernel, for an error that no call should see: tests compare what can be selected with what is compiled.
template <typename Variant, typename Params>
void launch_from(const Menu<Variant, Params>& menu, const Variant& wanted, const Params& params, const Queue& queue,
                 const char* name) {
  for (const Compiled<Variant, Params>& c : menu)
    if (c.variant == wanted) return c.launch(params, queue);
  throw std::logic_error(std::string(name) + ": the selected kernel is not compiled in");
}

template <typename Variant, typename Params>
std::vector<Variant> variants_of(const Menu<Variant, Params>& menu) {
  std::vector<Variant> variants;
  for (const Compiled<Variant, Params>& c : menu) variants.push_back(c.variant);
  return variants;
}

// The menus of several sources in one.
template <typename MenuT, typename... Sources>
MenuT menu_of(const Sources&... sources) {
  MenuT all;
  const auto add = [&](const MenuT& of_source) { all.insert(all.end(), of_source.begin(), of_source.end()); };
  (add(sources()), ...);
  return all;
}

}  // namespace resnet_fused::cuda
