// Environment variables. An unknown value is an error: with a default, a misspelt engine would silently select another.
#pragma once
#include <cstddef>
#include <initializer_list>
#include <optional>

namespace resnet_fused::cpu {

// While one exists, this thread reads a variable only once: getenv takes microseconds when the environment is not in
// the cache, and an op asks several times.
class ReadsEnvironmentOnce {
 public:
  ReadsEnvironmentOnce();
  ~ReadsEnvironmentOnce();
  ReadsEnvironmentOnce(const ReadsEnvironmentOnce&) = delete;
  ReadsEnvironmentOnce& operator=(const ReadsEnvironmentOnce&) = delete;
};

// The index in `names` of the value of `variable`; empty if unset or empty. Read on every call. Throws
// std::runtime_error with the value and the valid ones.
std::optional<size_t> index_from_environment(const char* variable, std::initializer_list<const char*> names);

// A size in whole MiB, returned in bytes; otherwise the same.
std::optional<size_t> mebibytes_from_environment(const char* variable);

}  // namespace resnet_fused::cpu
