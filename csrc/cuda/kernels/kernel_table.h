// A table: the compiled kernels of a family, by variant.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/runtime/queue.h"

// Constant expression: whether a table includes variant v. The emulator defines it to compile only what a test
// launches.
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
using KernelTable = std::vector<Compiled<Variant, Params>>;

// name: the kernel's, for the error. No call should raise it: tests compare the selectable variants with the tables.
template <typename Variant, typename Params>
void launch_from(const KernelTable<Variant, Params>& table, const Variant& wanted, const Params& params,
                 const Queue& queue, const char* name) {
  for (const Compiled<Variant, Params>& c : table)
    if (c.variant == wanted) return c.launch(params, queue);
  throw std::logic_error(std::string(name) + ": the selected kernel is not compiled in");
}

template <typename Variant, typename Params>
std::vector<Variant> variants_of(const KernelTable<Variant, Params>& table) {
  std::vector<Variant> variants;
  for (const Compiled<Variant, Params>& c : table) variants.push_back(c.variant);
  return variants;
}

// Concatenates the tables of several sources.
template <typename Table, typename... Sources>
Table join_tables(const Sources&... sources) {
  Table all;
  const auto add = [&](const Table& of_source) { all.insert(all.end(), of_source.begin(), of_source.end()); };
  (add(sources()), ...);
  return all;
}

}  // namespace resnet_fused::cuda
