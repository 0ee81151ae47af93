// Environment variables. An unknown value is an error: with a default, a misspelt engine would silently select another.
#pragma once
#include <cstddef>
#include <initializer_list>
#include <optional>

namespace resnet_fused::cpu {

// The index in `names` of the value of `variable`; empty if unset or empty. Read on every call. Throws
// std::runtime_error with the value and the valid ones.
std::optional<size_t> index_from_environment(const char* variable, std::initializer_list<const char*> names);

// A size in whole MiB, returned in bytes; otherwise the same.
std::optional<size_t> mebibytes_from_environment(const char* variable);

}  // namespace resnet_fused::cpu
