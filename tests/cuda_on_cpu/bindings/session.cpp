// begin() and end() in terms of Value.
#include "bindings/library.h"

namespace cuda_on_cpu::bindings {

namespace {

template <typename T>
T one_of(const std::vector<std::pair<const char*, T>>& names, const std::string& name) {
  for (const auto& [known, value] : names)
    if (name == known) return value;
  throw std::invalid_argument("unknown name '" + name + "'");
}

Value index_of(const Index& i) { return std::tuple(i.x, i.y, i.z); }

Value dict_of(const Finding& f) {
  return Value::Dict{{"hazard", f.hazard},
                     {"detail", f.detail},
                     {"place", f.where.place},
                     {"other", f.where.other},
                     {"only_if_lines_differ", f.where.only_if_lines_differ},
                     {"in_thread", f.in_thread},
                     {"block", index_of(f.block)},
                     {"thread", index_of(f.thread)},
                     {"count", f.count}};
}

}  // namespace

void begin_session(const Image& image, const std::vector<BufferArg>& buffers, const std::string& schedule,
                   uint32_t seed) {
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
  begin(image, std::move(known), options);
}

Value end_session() {
  const Report report = end();
  const Counters& c = report.counters;
  std::vector<Value> findings;
  for (const Finding& f : report.findings) findings.push_back(dict_of(f));
  return Value::Dict{{"findings", findings},           {"given_up", report.given_up},
                     {"launched", report.launched},    {"bytes_loaded", c.bytes_loaded},
                     {"bytes_stored", c.bytes_stored}, {"wide_accesses", c.wide_accesses},
                     {"bytes_copied", c.bytes_copied}, {"collectives", c.collectives}};
}

}  // namespace cuda_on_cpu::bindings
