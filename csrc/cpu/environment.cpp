#include "cpu/environment.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace resnet_fused::cpu {

namespace {

// What a thread has read while it reads once.
struct Known {
  int readers = 0;
  std::vector<std::pair<const char*, std::optional<size_t>>> values;
};
thread_local Known known;

// read(value), or what it gave before; empty if the variable is unset or empty.
template <typename Read>
std::optional<size_t> once(const char* variable, const Read& read) {
  for (const auto& [name, value] : known.values)
    if (!std::strcmp(name, variable)) return value;
  const char* value = std::getenv(variable);
  const std::optional<size_t> found = value && *value ? read(value) : std::nullopt;
  if (known.readers) known.values.emplace_back(variable, found);
  return found;
}

[[noreturn]] void refuse(const char* variable, const std::string& value, const std::string& expected) {
  throw std::runtime_error(std::string(variable) + " is " + value + "; " + expected + " expected, or unset it");
}

}  // namespace

ReadsEnvironmentOnce::ReadsEnvironmentOnce() { ++known.readers; }

ReadsEnvironmentOnce::~ReadsEnvironmentOnce() {
  if (--known.readers == 0) known.values.clear();
}

std::optional<size_t> index_from_environment(const char* variable, std::initializer_list<const char*> names) {
  return once(variable, [&](const char* value) -> std::optional<size_t> {
    const auto* found = std::find(names.begin(), names.end(), std::string_view(value));
    if (found != names.end()) return found - names.begin();
    std::string expected = "one of";
    for (const char* const& name : names) expected += (&name == names.begin() ? " " : ", ") + std::string(name);
    refuse(variable, value, expected);
  });
}

std::optional<size_t> mebibytes_from_environment(const char* variable) {
  return once(variable, [&](const std::string& text) -> std::optional<size_t> {
    constexpr size_t kMost = size_t{1} << 30;  // 1 PiB; above that the byte count could overflow
    const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || text.size() > 10 || std::stoull(text) > kMost)
      refuse(variable, text, "a whole number of MiB from 0 to " + std::to_string(kMost));
    return std::stoull(text) << 20;
  });
}

}  // namespace resnet_fused::cpu
