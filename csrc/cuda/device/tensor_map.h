// A TMA descriptor as kernels receive it. runtime/tensor_map.h encodes it.
#pragma once
#include <cstdint>

namespace resnet_fused::cuda {

// How the 16-byte chunks of a row are permuted in shared memory. The value is the width in bytes, the maximum of a
// box's innermost extent. The pattern repeats every 8 * width bytes; boxes are aligned to that.
enum class Swizzle : int32_t { kNone = 0, k32 = 32, k64 = 64, k128 = 128 };

// CUtensorMap without cuda.h. CUDA 13 aligns it to 128 bytes, CUDA 12 to 64.
struct alignas(128) TensorMap {
  uint64_t opaque[16];
};

}  // namespace resnet_fused::cuda
