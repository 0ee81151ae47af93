// Implicit GEMM: rows are output pixels, depth is taps x input channels, gathered on the fly. The depth is cut into
// 16-byte chunks, so that with few channels a step holds several taps.
#pragma once
#include "cuda/device/types.h"

namespace resnet_fused::cuda {

// A thread's position along the depth: one chunk of one tap.
struct TapCursor {
  int32_t chunks;    // per tap
  int32_t chunk;     // within the tap
  int32_t row, col;  // of the tap in the filter; row >= r past the end

  __device__ __forceinline__ TapCursor(const ConvShape& shape, int32_t per_chunk, int32_t at)
      : chunks(shape.c / per_chunk), chunk(at % chunks), row(at / chunks / shape.s), col(at / chunks % shape.s) {}

  __device__ __forceinline__ void advance(const ConvShape& shape, int32_t by) {
    chunk += by;
    while (chunk >= chunks) {
      chunk -= chunks;
      if (++col == shape.s) col = 0, ++row;
    }
  }
  __device__ __forceinline__ bool inside(const ConvShape& shape) const { return row < shape.r; }

  // Elements from a pixel's first tap to this position.
  __device__ __forceinline__ int32_t offset(const ConvShape& shape, int32_t per_chunk) const {
    return (row * shape.dil_h * shape.w + col * shape.dil_w) * shape.c + chunk * per_chunk;
  }
};

// The kRows pixels that one thread copies: first, first + step, ...
template <int kRows>
struct PixelRows {
  int32_t offset[kRows];  // elements from x to the first tap; negative if that lies in padding before x
  uint32_t taps[kRows];   // bit r: row r of the filter is inside the image; bit 16 + s: column s is

  __device__ __forceinline__ PixelRows(const ConvShape& shape, int32_t first, int32_t step) {
    const int32_t pixels = shape.n * shape.p * shape.q;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int32_t m = first + i * step;
      const int32_t q = m % shape.q, p = m / shape.q % shape.p, n = m / shape.q / shape.p;
      const int32_t h = p * shape.stride_h - shape.pad_h, w = q * shape.stride_w - shape.pad_w;
      offset[i] = ((n * shape.h + h) * shape.w + w) * shape.c;
      taps[i] = 0;
      if (m >= pixels) continue;
      for (int r = 0; r < shape.r; ++r)
        if (static_cast<uint32_t>(h + r * shape.dil_h) < static_cast<uint32_t>(shape.h)) taps[i] |= 1u << r;
      for (int s = 0; s < shape.s; ++s)
        if (static_cast<uint32_t>(w + s * shape.dil_w) < static_cast<uint32_t>(shape.w)) taps[i] |= 0x10000u << s;
    }
  }

  __device__ __forceinline__ bool valid(int i, const TapCursor& at) const {
    return (taps[i] >> at.row) & (taps[i] >> (16 + at.col)) & 1;
  }
};

}  // namespace resnet_fused::cuda
