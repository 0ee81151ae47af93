// Environment variables that this library reads, refused with a sentence where their value means nothing.
#pragma once
#include <cstdint>
#include <optional>

namespace resnet_fused::cpu {

// A whole number of MiB in bytes; nothing where the variable is absent or empty. Throws std::runtime_error.
std::optional<int64_t> mebibytes_from_environment(const char* name);

}  // namespace resnet_fused::cpu
