// A library of kernels, as the emulator loads it: functions by name. Linked into each, it knows what is this library's
// own image.
#pragma once
#include <functional>
#include <map>
#include <string>

#include "bindings/value.h"
#include "runtime/session.h"

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start;
extern "C" __attribute__((visibility("hidden"))) const char _end;

namespace cuda_on_cpu::bindings {

using Function = std::function<Value(const Value::List&)>;

// What module.cpp looks up in a library by its C name, cuda_on_cpu_functions.
using Functions = std::map<std::string, Function>;
extern "C" __attribute__((visibility("default"))) const Functions& cuda_on_cpu_functions();

// A file of bindings adds functions to its library; their arguments and results are what Value can be:
//   const Binding binding("run_conv_fwd", &run);
struct Binding {
  template <typename R, typename... A>
  Binding(const char* name, R (*function)(A...)) {
    add(name, [=](const Value::List& arguments) { return call(function, arguments, std::index_sequence_for<A...>()); });
  }
  template <typename Lambda>
  Binding(const char* name, Lambda lambda) : Binding(name, +lambda) {}

 private:
  static void add(const char* name, Function function);

  template <typename R, typename... A, size_t... i>
  static Value call(R (*function)(A...), const Value::List& arguments, std::index_sequence<i...>) {
    if (arguments.size() != sizeof...(A)) throw std::invalid_argument("another number of arguments is wanted");
    if constexpr (std::is_void_v<R>)
      return function(arguments[i].as<std::decay_t<A>>()...), Value();
    else
      return function(arguments[i].as<std::decay_t<A>>()...);
  }
};

// name, address, bytes, and what kernels do with it: "read", "write" ("write bytes" where they are
// stored one by one), "read_write", "scratch" or "working"
using BufferArg = std::tuple<std::string, uintptr_t, size_t, std::string>;

void begin_session(const Image& image, const std::vector<BufferArg>& buffers, const std::string& schedule,
                   uint32_t seed);
inline void begin_session(const std::vector<BufferArg>& buffers, const std::string& schedule, uint32_t seed) {
  begin_session({&__ehdr_start, &_end}, buffers, schedule, seed);
}
Value end_session();  // cuda_on_cpu/report.py says what it makes of it

}  // namespace cuda_on_cpu::bindings
