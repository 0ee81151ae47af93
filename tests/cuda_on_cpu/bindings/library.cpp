#include "bindings/library.h"

namespace cuda_on_cpu::bindings {

namespace {

// Of a function, for bindings are made before main() in any order.
Functions& functions() {
  static Functions all;
  return all;
}

}  // namespace

void Binding::add(const char* name, Function function) { functions()[name] = std::move(function); }

const Functions& cuda_on_cpu_functions() { return functions(); }

}  // namespace cuda_on_cpu::bindings
