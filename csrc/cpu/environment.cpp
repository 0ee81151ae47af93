#include "cpu/environment.h"

#include <cstdlib>
#include <cstring>

#include "common/torch_abi.h"

namespace resnet_fused::cpu {

std::optional<int64_t> mebibytes_from_environment(const char* name) {
  const char* text = std::getenv(name);
  if (!text || !*text) return std::nullopt;
  constexpr size_t kMostDigits = 12;  // an exbibyte
  const size_t digits = std::strspn(text, "0123456789");
  RF_CHECK(!text[digits] && digits <= kMostDigits, name, " is \"", text,
           "\"; a whole number of MiB expected, or unset it");
  return static_cast<int64_t>(std::strtoll(text, nullptr, 10)) << 20;
}

}  // namespace resnet_fused::cpu
