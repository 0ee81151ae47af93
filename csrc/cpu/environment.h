// Environment variables. An unknown value is an error, never a default: a misspelt engine would test another one.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace resnet_fused::cpu {

// The index among `names` of what `variable` is set to; nothing where it is unset or empty. Read anew on every call.
// Throws std::runtime_error with the value and the valid ones.
std::optional<size_t> index_from_environment(const char* variable, const std::vector<std::string>& names);

// Whole MiB in bytes, likewise.
std::optional<size_t> mebibytes_from_environment(const char* variable);

}  // namespace resnet_fused::cpu
