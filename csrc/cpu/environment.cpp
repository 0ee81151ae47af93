#include "cpu/environment.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <string_view>

namespace resnet_fused::cpu {

namespace {

const char* value_of(const char* variable) {
  const char* value = std::getenv(variable);
  return value && *value ? value : nullptr;
}

[[noreturn]] void refuse(const char* variable, const std::string& value, const std::string& expected) {
  throw std::runtime_error(std::string(variable) + " is " + value + "; " + expected + " expected, or unset it");
}

}  // namespace

std::optional<size_t> index_from_environment(const char* variable, std::initializer_list<const char*> names) {
  const char* value = value_of(variable);
  if (!value) return std::nullopt;
  const auto* found = std::find(names.begin(), names.end(), std::string_view(value));
  if (found != names.end()) return found - names.begin();
  std::string expected = "one of";
  for (const char* const& name : names) expected += (&name == names.begin() ? " " : ", ") + std::string(name);
  refuse(variable, value, expected);
}

std::optional<size_t> mebibytes_from_environment(const char* variable) {
  const char* value = value_of(variable);
  if (!value) return std::nullopt;
  constexpr size_t kMost = size_t{1} << 30;  // 1 PiB; above that the byte count could overflow
  const std::string text = value;
  const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
  if (!digits || text.size() > 10 || std::stoull(text) > kMost)
    refuse(variable, text, "a whole number of MiB from 0 to " + std::to_string(kMost));
  return std::stoull(text) << 20;
}

}  // namespace resnet_fused::cpu
