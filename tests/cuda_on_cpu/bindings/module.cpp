// The Python module: whatever bindings were linked into it.
#include <dlfcn.h>

#include <stdexcept>

#include "bindings/python.h"

namespace py = pybind11;

namespace cuda_on_cpu::bindings {

namespace {

// Of a function, for bindings are made before main() in any order.
std::vector<Binding::Define>& defines() {
  static std::vector<Binding::Define> all;
  return all;
}

template <typename T>
T one_of(const std::vector<std::pair<const char*, T>>& names, const std::string& name) {
  for (const auto& [known, value] : names)
    if (name == known) return value;
  throw std::invalid_argument("unknown name '" + name + "'");
}

std::string own_path() {
  Dl_info info;
  return dladdr(reinterpret_cast<const void*>(&own_path), &info) ? info.dli_fname : "";
}

py::tuple tuple_of(const Index& i) { return py::make_tuple(i.x, i.y, i.z); }

py::dict dict_of(const Finding& f) {
  using py::operator""_a;
  return py::dict("hazard"_a = f.hazard, "detail"_a = f.detail, "place"_a = f.where.place, "other"_a = f.where.other,
                  "only_if_lines_differ"_a = f.where.only_if_lines_differ, "in_thread"_a = f.in_thread,
                  "block"_a = tuple_of(f.block), "thread"_a = tuple_of(f.thread), "count"_a = f.count);
}

}  // namespace

Binding::Binding(Define define) { defines().push_back(define); }

void begin_session(const std::vector<BufferArg>& buffers, const std::string& schedule, uint32_t seed) {
  std::vector<Buffer> known;
  for (const auto& [name, address, bytes, kind] : buffers)
    known.push_back({name, reinterpret_cast<char*>(address), bytes,
                     one_of<BufferKind>({{"read", BufferKind::kInput},
                                         {"write", BufferKind::kOutput},
                                         {"write bytes", BufferKind::kOutput},
                                         {"read_write", BufferKind::kInOut},
                                         {"scratch", BufferKind::kScratch},
                                         {"working", BufferKind::kWorking}},
                                        kind),
                     kind == "write bytes" ? size_t{1} : size_t{2}});
  Options options;
  options.schedule = one_of<Schedule>(
      {{"stay", Schedule::kStay}, {"rotate", Schedule::kRotate}, {"random", Schedule::kRandom}}, schedule);
  options.seed = seed;
  begin(std::move(known), options);
}

py::dict end_session() {
  using py::operator""_a;
  const Report report = end();
  py::list findings;
  for (const Finding& f : report.findings) findings.append(dict_of(f));
  const Counters& c = report.counters;
  const py::dict raw("findings"_a = findings, "given_up"_a = report.given_up, "launched"_a = report.launched,
                     "bytes_loaded"_a = c.bytes_loaded, "bytes_stored"_a = c.bytes_stored,
                     "wide_accesses"_a = c.wide_accesses, "bytes_copied"_a = c.bytes_copied,
                     "collectives"_a = c.collectives);
  return py::module_::import("cuda_on_cpu.report").attr("finish")(raw, own_path());
}

}  // namespace cuda_on_cpu::bindings

PYBIND11_MODULE(kernels, m) {
  for (const auto define : cuda_on_cpu::bindings::defines()) define(m);
}
