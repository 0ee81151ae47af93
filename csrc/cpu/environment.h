// Environment variables. An unknown value is an error: with a default, a misspelt engine would silently select another.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace resnet_fused::cpu {

// The index in `names` of the value of `variable`; empty if unset or empty. Read on every call. Throws
// std::runtime_error with the value and the valid ones.
std::optional<size_t> index_from_environment(const char* variable, const std::vector<std::string>& names);

// A size in whole MiB, returned in bytes; otherwise the same.
std::optional<size_t> mebibytes_from_environment(const char* variable);

}  // namespace resnet_fused::cpu
