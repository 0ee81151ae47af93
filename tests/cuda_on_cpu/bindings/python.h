// What all bindings share: how Python says what memory there is and how to schedule, and what it gets back.
#pragma once
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "runtime/session.h"

namespace cuda_on_cpu::bindings {

// name, address, bytes, and what kernels do with it: "read", "write" ("write bytes" where they are
// stored one by one), "read_write", "scratch" or "working"
using BufferArg = std::tuple<std::string, uintptr_t, size_t, std::string>;

void begin_session(const std::vector<BufferArg>& buffers, const std::string& schedule, uint32_t seed);
pybind11::dict end_session();  // cuda_on_cpu/report.py says what is in it

// A file of bindings adds its functions to the module:
//   const Binding binding([](pybind11::module_& m) { m.def(...); });
struct Binding {
  using Define = void (*)(pybind11::module_&);
  explicit Binding(Define define);
};

}  // namespace cuda_on_cpu::bindings
