#include "cpu/memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace resnet_fused::cpu {

Tensor output_buffer(const Ints& sizes, const Tensor& like) {
  Tensor out = aten_empty(sizes, like, /*channels_last=*/true);
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2 << 20;
  const int64_t bytes = out.numel() * (like.scalar_type() == ScalarType::BFloat16 ? 2 : 4);
  if (bytes >= static_cast<int64_t>(2 * kHuge)) {
    // only whole huge pages inside the tensor; a refusal changes nothing but speed
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(out.mutable_data_ptr()) + kHuge - 1) / kHuge * kHuge;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(out.mutable_data_ptr()) + bytes) / kHuge * kHuge;
    if (end > begin) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
  }
#endif
  return out;
}

}  // namespace resnet_fused::cpu
