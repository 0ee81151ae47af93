#include "runtime/tensor_map.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <sstream>
#include <stdexcept>

namespace cuda_on_cpu {

namespace {

using resnet_fused::cuda::TensorMap;
using resnet_fused::cuda::TensorShape;

std::atomic<uint64_t> made{0};

// Throws for maps that cuTensorMapEncode rejects (CUDA_ERROR_INVALID_VALUE) or that the emulator does not model.
template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream s;
  s << "no such tensor map: ";
  (s << ... << parts);
  throw std::runtime_error(s.str());
}

MapContents start(const TensorShape& shape, MapContents::Kind kind, uint32_t swizzle, const int32_t* step) {
  MapContents m{};
  m.kind = kind;
  m.base = static_cast<char*>(const_cast<void*>(shape.base));
  m.rank = static_cast<uint8_t>(shape.rank);
  m.swizzle = static_cast<uint8_t>(swizzle);
  m.stride[0] = size_of(shape.dtype);
  require(reinterpret_cast<uintptr_t>(shape.base) % 16 == 0, "the tensor's address is no multiple of 16");
  require(shape.rank >= 2 && shape.rank <= kMostRank, "rank ", shape.rank);
  for (int i = 0; i < shape.rank; ++i) {
    require(shape.size[i] >= 1 && shape.size[i] <= INT64_C(1) << 32, "size ", shape.size[i], " of dimension ", i);
    require(step[i] >= 1 && step[i] <= 8, "step ", step[i], " of dimension ", i);
    m.size[i] = static_cast<uint32_t>(shape.size[i]);
    m.step[i] = static_cast<uint8_t>(step[i]);
    if (!i) continue;
    require(shape.stride[i] % 16 == 0 && shape.stride[i] < INT64_C(1) << 40, "stride ", shape.stride[i],
            " of dimension ", i, ", which must be a multiple of 16 below 2^40");
    m.stride[i] = shape.stride[i];
  }
  require(step[0] == 1, "step ", step[0], " of dimension 0");
  return m;
}

TensorMap finish(const MapContents& m) {
  const uint32_t row = m.row_bytes();
  require(row % 16 == 0, "rows of ", row, " bytes, which must be a multiple of 16");
  require(!m.swizzle || row == m.swizzle, "rows of ", row, " bytes with a swizzle of ", int{m.swizzle},
          ": the emulator knows equal widths only");
  TensorMap map{};
  std::memcpy(static_cast<void*>(&map), &m, sizeof m);
  ++made;
  return map;
}

uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// The row at position x in dimensions 1 and up, whose first element is at x0 in dimension 0.
MapRow row_at(const MapContents& m, int64_t x0, const int64_t* x, uint32_t count, uint32_t offset) {
  MapRow row{m.base, offset, 0, 0};
  for (int i = 1; i < m.rank; ++i) {
    if (x[i] < 0 || x[i] >= m.size[i]) return row;
    row.source += x[i] * m.stride[i];
  }
  const int64_t begin = std::max<int64_t>(x0, 0), end = std::min<int64_t>(x0 + count, m.size[0]);
  if (begin >= end) return row;
  row.first = static_cast<uint32_t>(begin - x0);
  row.bytes = static_cast<uint32_t>((end - begin) * m.stride[0]);
  row.source += begin * m.stride[0];
  return row;
}

std::vector<MapRow> rows_of_tile(const MapContents& m, const Coordinates& at) {
  std::vector<MapRow> rows;
  int64_t x[kMostRank] = {};
  uint32_t count[kMostRank], index[kMostRank] = {};
  for (int i = 0; i < m.rank; ++i) count[i] = ceil_div(m.box[i], m.step[i]);
  for (int moved = 0; moved < m.rank;) {
    for (int i = 1; i < m.rank; ++i) x[i] = at.c[i] + static_cast<int64_t>(index[i]) * m.step[i];
    rows.push_back(row_at(m, at.c[0], x, count[0], static_cast<uint32_t>(rows.size()) * m.row_bytes()));
    for (moved = 1; moved < m.rank && ++index[moved] == count[moved]; ++moved) index[moved] = 0;
  }
  return rows;
}

// Walks the positions of the im2col bounding box, W first, and adds the instruction's offsets to each.
std::vector<MapRow> rows_of_window(const MapContents& m, const Coordinates& at) {
  std::vector<MapRow> rows;
  int64_t position[4] = {0, at.c[1], at.c[2], at.c[3]};
  const int64_t last[] = {0, static_cast<int64_t>(m.size[1]) - 1 + m.upper[0],
                          static_cast<int64_t>(m.size[2]) - 1 + m.upper[1]};
  for (uint32_t pixel = 0; pixel < m.box[1]; ++pixel) {
    const int64_t x[4] = {0, position[1] + at.offset_w, position[2] + at.offset_h, position[3]};
    rows.push_back(row_at(m, at.c[0], x, m.box[0], pixel * m.row_bytes()));
    int i = 1;
    for (; i < 3; ++i) {
      position[i] += m.step[i];
      if (position[i] <= last[i]) break;
      position[i] = m.lower[i - 1];
    }
    if (i == 3) ++position[3];
  }
  return rows;
}

}  // namespace

uint64_t tensor_maps_made() { return made; }

MapContents MapContents::of(const TensorMap& map) {
  MapContents m;
  std::memcpy(&m, &map, sizeof m);
  return m;
}

uint32_t MapContents::row_bytes() const { return box[0] * static_cast<uint32_t>(stride[0]); }

uint32_t MapContents::bytes() const {
  if (kind == Kind::kIm2col) return box[1] * row_bytes();
  uint32_t n = row_bytes();
  for (int i = 1; i < rank; ++i) n *= ceil_div(box[i], step[i]);
  return n;
}

std::vector<MapRow> rows_of(const MapContents& map, const Coordinates& at) {
  return map.kind == MapContents::Kind::kIm2col ? rows_of_window(map, at) : rows_of_tile(map, at);
}

}  // namespace cuda_on_cpu

namespace resnet_fused::cuda {

using cuda_on_cpu::MapContents;
using cuda_on_cpu::require;

TensorMap driver_tiled(const TensorShape& shape, const TiledBox& box) {
  MapContents m = cuda_on_cpu::start(shape, MapContents::Kind::kTiled, static_cast<uint32_t>(box.swizzle), box.step);
  for (int i = 0; i < shape.rank; ++i) {
    require(box.box[i] >= 1 && box.box[i] <= 256, "extent ", box.box[i], " of dimension ", i);
    m.box[i] = static_cast<uint16_t>(box.box[i]);
  }
  return cuda_on_cpu::finish(m);
}

TensorMap driver_im2col(const TensorShape& shape, const Im2colBox& box) {
  MapContents m = cuda_on_cpu::start(shape, MapContents::Kind::kIm2col, static_cast<uint32_t>(box.swizzle), box.step);
  require(shape.rank == 4, "im2col of rank ", shape.rank, "; the emulator knows rank 4 only");
  require(box.channels >= 1 && box.channels <= 256, box.channels, " channels");
  require(box.pixels >= 1 && box.pixels <= 1024, box.pixels, " pixels");
  for (int i = 0; i < 2; ++i) {
    require(box.lower[i] >= -128 && box.lower[i] <= 127 && box.upper[i] >= -128 && box.upper[i] <= 127, "corners ",
            box.lower[i], " and ", box.upper[i]);
    m.lower[i] = static_cast<int16_t>(box.lower[i]);
    m.upper[i] = static_cast<int16_t>(box.upper[i]);
  }
  m.box[0] = static_cast<uint16_t>(box.channels);
  m.box[1] = static_cast<uint16_t>(box.pixels);
  return cuda_on_cpu::finish(m);
}

}  // namespace resnet_fused::cuda
