// Interface between a kernel library and the emulator: functions by name. Linked into each library, so that it knows
// the library's own image.
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

// module.cpp looks up this function in a library by its C name.
using Functions = std::map<std::string, Function>;
extern "C" __attribute__((visibility("default"))) const Functions& cuda_on_cpu_functions();

// Adds a function to its library. Its arguments and result must be convertible from and to Value:
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

// name, address, bytes and kind: "read", "write" ("write bytes" if stored in single bytes), "read_write", "scratch" or
// "working"; see BufferKind
using BufferArg = std::tuple<std::string, uintptr_t, size_t, std::string>;

void begin_session(const Image& image, const std::vector<BufferArg>& buffers, const std::string& schedule,
                   uint32_t seed);
inline void begin_session(const std::vector<BufferArg>& buffers, const std::string& schedule, uint32_t seed) {
  begin_session({&__ehdr_start, &_end}, buffers, schedule, seed);
}
Value end_session();  // the raw report; cuda_on_cpu/report.py converts it

}  // namespace cuda_on_cpu::bindings
