#include "cpu/finite.h"

#include <atomic>

#include "common/parallel.h"
#include "cpu/isa.h"

namespace resnet_fused::cpu {

namespace {

// An exponent of all ones is an infinity or a NaN. Counts without a branch, so the loop vectorises.
FOR_EVERY_ISA int64_t count_not_finite(const uint32_t* x, int64_t n) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) found += (x[i] & 0x7f800000) == 0x7f800000;
  return found;
}

FOR_EVERY_ISA int64_t count_not_finite(const uint16_t* x, int64_t n) {
  int64_t found = 0;
  for (int64_t i = 0; i < n; ++i) found += (x[i] & 0x7f80) == 0x7f80;
  return found;
}

}  // namespace

bool all_finite(const void* data, int64_t count, bool bf16) {
  return !(bf16 ? count_not_finite(static_cast<const uint16_t*>(data), count)
                : count_not_finite(static_cast<const uint32_t*>(data), count));
}

bool all_finite(const Tensor& x) {
  const bool bf16 = scalar_type_of(x) == ScalarType::BFloat16;
  const char* data = static_cast<const char*>(x.const_data_ptr());
  std::atomic<bool> finite{true};
  parallel_for(0, x.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
    if (!all_finite(data + begin * (bf16 ? 2 : 4), end - begin, bf16)) finite = false;
  });
  return finite;
}

}  // namespace resnet_fused::cpu
