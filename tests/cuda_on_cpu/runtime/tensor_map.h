// The emulator's contents of a TensorMap's 128 opaque bytes, and the rows of elements that an instruction moves.
#pragma once
#include <cstdint>
#include <vector>

#include "cuda/runtime/tensor_map.h"
#include "runtime/instructions_sm90.h"

namespace cuda_on_cpu {

constexpr int kMostRank = resnet_fused::cuda::kMostTensorRank;

struct MapContents {
  enum class Kind : uint8_t { kNone, kTiled, kIm2col };

  char* base;
  int64_t stride[kMostRank];  // bytes; [0] is the element's size
  uint32_t size[kMostRank];
  int16_t lower[2], upper[2];
  uint16_t box[kMostRank];  // im2col: channels, pixels
  uint8_t step[kMostRank];
  uint8_t rank, swizzle;
  Kind kind;

  static MapContents of(const resnet_fused::cuda::TensorMap& map);
  uint32_t bytes() const;      // in shared memory
  uint32_t row_bytes() const;  // bytes of a row: elements adjacent both there and in the tensor
};
static_assert(sizeof(MapContents) <= sizeof(resnet_fused::cuda::TensorMap));

// A row of the box. `bytes` bytes from element `first` on are inside the tensor, the rest of the row is outside.
struct MapRow {
  char* source;     // address of element `first`
  uint32_t offset;  // byte offset of the row in the box, before the swizzle
  uint32_t first, bytes;
};

uint64_t tensor_maps_made();  // in this process so far

std::vector<MapRow> rows_of(const MapContents& map, const Coordinates& at);

// Where TMA puts a byte: address bits permute 16-byte pieces, with a period of 8 * width bytes.
inline uint32_t swizzled(uint32_t address, uint32_t width) {
  return width ? address ^ (address >> 3 & (width - 16)) : address;
}

}  // namespace cuda_on_cpu
