#include "bindings/library.h"

namespace cuda_on_cpu::bindings {

namespace {

// A function-local static: bindings register during static initialisation, in any order.
Functions& functions() {
  static Functions all;
  return all;
}

}  // namespace

void Binding::add(const char* name, Function function) { functions()[name] = std::move(function); }

const Functions& cuda_on_cpu_functions() { return functions(); }

}  // namespace cuda_on_cpu::bindings
