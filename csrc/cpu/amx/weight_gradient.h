// The weight gradient with AMX (direct_gradient.h). Rows of the products are A, transposed: a row holds one channel of
// 32 positions. Columns are B: a row holds a pair of positions of 16 channels. A tap reads B some positions later, so B
// exists twice where taps begin at odd positions: pairs from even ones on, and from odd ones on. Under a stride of n, x
// is dealt into planes of every nth row and column, so that a tap's neighbouring positions are neighbours. Of an image,
// a position is all values under a kernel row, which lie side by side in a padded copy of its row.
#pragma once
#include "cpu/amx/element.h"
#include "cpu/direct_gradient.h"

namespace resnet_fused::cpu::amx::weight_gradient {
namespace {

using simd::Scratch;
using simd::direct::ceil_div;
using simd::direct::min;
using simd::direct::round_up;
using V = Bf16::V;

constexpr int kPositions = 2 * kGroup;             // of a step
constexpr int kPairValues = 2 * kLanes;            // of a row of A or B
constexpr int kTileValues = kGroup * kPairValues;  // of A or B
constexpr int kTileFloats = kGroup * kLanes;       // of C
constexpr int kMostTaps = simd::direct::kMaxKernel;

inline bool is_pointwise(const DirectGradient& q) { return q.r * q.s == 1; }

inline int rows_of(const DirectGradient& q) { return q.rows_are_x ? q.c : q.k; }
inline int columns_of(const DirectGradient& q) { return q.rows_are_x ? q.k : q.joins_taps ? q.s * q.c : q.c; }
inline int taps_in_row(const DirectGradient& q) { return q.joins_taps ? 1 : q.s; }
inline int taps_of(const DirectGradient& q) { return q.r * taps_in_row(q); }
inline int64_t row_blocks(const DirectGradient& q) { return ceil_div(rows_of(q), kBlock); }
inline int column_blocks(const DirectGradient& q) { return ceil_div(columns_of(q), kBlock); }

// Interleaving two pixels leaves the channels of a block in this order.
inline int channel_of(int tile, int i) { return i / 4 * 8 + i % 4 + 4 * tile; }

// Where the taps read: a copy of the columns' pairs, and the position in it.
struct Taps {
  struct Plane {
    int h, w;
  };
  struct Copy {
    int plane, odd;
  };
  Plane planes[kMostTaps];
  Copy copies[kMostTaps];
  int copy[kMostTaps], position[kMostTaps];
  int plane_count = 0, copy_count = 0;

  explicit Taps(const DirectGradient& q) {
    for (int tap = 0; tap < taps_of(q); ++tap) {
      const int h = tap / taps_in_row(q) * q.dil_h, w = tap % taps_in_row(q) * q.dil_w;
      position[tap] = h / q.stride_h * q.width + w / q.stride_w;
      copy[tap] = find_copy(find_plane(h % q.stride_h, w % q.stride_w), position[tap] % 2);
    }
  }

 private:
  int find_plane(int h, int w) {
    for (int i = 0; i < plane_count; ++i)
      if (planes[i].h == h && planes[i].w == w) return i;
    planes[plane_count] = {h, w};
    return plane_count++;
  }
  int find_copy(int plane, int odd) {
    for (int i = 0; i < copy_count; ++i)
      if (copies[i].plane == plane && copies[i].odd == odd) return i;
    copies[copy_count] = {plane, odd};
    return copy_count++;
  }
};

thread_local Scratch pixel_scratch, zero_scratch, padded_scratch, row_scratch, pair_scratch;

// The operands of one chunk: pointers to its pixels, and the tiles that are made of them.
class Chunk {
 public:
  Chunk(const DirectGradient& q, const Taps& taps, int m0, int m1) : q_(q), taps_(taps), m0_(m0), m1_(m1) {
    const int64_t bands = q.chunk_bands;
    const int most = round_up(q.c > q.k ? q.c : q.k, kBlock);
    auto* zeros = static_cast<uint16_t*>(zero_scratch.get(most * sizeof(uint16_t)));
    simd::direct::fill_zeros(zeros, most);
    zeros_ = zeros;
    const int64_t pixels = bands * (q.band_positions + int64_t{taps.plane_count} * q.plane_positions);
    row_pixels_ = static_cast<const uint16_t**>(pixel_scratch.get(pixels * sizeof(uint16_t*)));
    column_pixels_ = row_pixels_ + bands * q.band_positions;
    if (q.joins_taps) {
      padded_columns_ = (q.ow - 1) * q.stride_w + q.s;
      padded_rows_ = (q.band_rows - 1) * q.stride_h + (q.r - 1) * q.dil_h + 1;
      const int64_t values = bands * padded_rows_ * padded_columns_ * q.c;
      padded_ = static_cast<uint16_t*>(padded_scratch.get(values * sizeof(uint16_t)));
    }
    const int64_t row_values = int64_t{m1 - m0} * kBlock * bands * q.band_positions;
    rows_ = static_cast<uint16_t*>(row_scratch.get(row_values * sizeof(uint16_t)));
    const int64_t pair_values = int64_t{taps.copy_count} * kBlock * bands * q.plane_positions;
    pairs_ = static_cast<uint16_t*>(pair_scratch.get(pair_values * sizeof(uint16_t)));
  }

  int steps() const { return q_.band_positions / kPositions; }
  int bands() const { return bands_; }

  // Finds the pixels of chunk `chunk`, and makes the tiles of its rows.
  void start(int chunk) {
    first_ = chunk * q_.chunk_bands;
    bands_ = min(q_.chunk_bands, q_.bands - first_);
    for (int i = 0; i < bands_; ++i) {
      const Band band = band_of(first_ + i);
      const uint16_t** const rows = row_pixels_ + int64_t{i} * q_.band_positions;
      if (q_.rows_are_x) {
        find_x(band, {0, 0}, q_.band_positions, rows);
        find_grad(band, q_.plane_positions, column_pixels_of(0, i));
      } else {
        find_grad(band, q_.band_positions, rows);
        if (q_.joins_taps) pad(band, padded_of(i));
        for (int plane = 0; plane < taps_.plane_count; ++plane)
          q_.joins_taps ? find_padded(taps_.planes[plane], padded_of(i), column_pixels_of(plane, i))
                        : find_x(band, taps_.planes[plane], q_.plane_positions, column_pixels_of(plane, i));
      }
    }
    if (q_.rows_are_x && q_.scale)
      transpose<true>();
    else
      transpose<false>();
  }

  // Makes the pairs of a block of columns.
  void use_columns(int block) {
    for (int copy = 0; copy < taps_.copy_count; ++copy)
      for (int band = 0; band < bands_; ++band) {
        const Taps::Copy& of = taps_.copies[copy];
        const uint16_t* const* const pixels = column_pixels_of(of.plane, band) + of.odd;
        if (!q_.rows_are_x && q_.scale)
          interleave<true>(block, pixels, pair_rows() - of.odd, pairs_of(copy, 0, band));
        else
          interleave<false>(block, pixels, pair_rows() - of.odd, pairs_of(copy, 0, band));
      }
  }

  // The first tile of a band: of one half of the channels of row block m, and of those of the columns.
  const uint16_t* row_tiles(int m, int half, int band) const {
    return rows_ + ((int64_t{2} * (m - m0_) + half) * bands_ + band) * steps() * kTileValues;
  }
  const uint16_t* column_tiles(int tap, int half, int band) const {
    return pairs_of(taps_.copy[tap], half, band) + int64_t{taps_.position[tap] / 2} * kPairValues;
  }

 private:
  struct Band {
    int64_t image;
    int row, rows;  // output rows; of a 1x1 kernel they may run on into the next images
  };
  Band band_of(int band) const {
    if (is_pointwise(q_)) {
      const int64_t row = int64_t{band} * q_.band_rows, left = int64_t{q_.n} * q_.oh - row;
      return {row / q_.oh, static_cast<int>(row % q_.oh), left < q_.band_rows ? static_cast<int>(left) : q_.band_rows};
    }
    const int row = band % q_.image_bands * q_.band_rows;
    return {band / q_.image_bands, row, min(q_.band_rows, q_.oh - row)};
  }

  int pair_rows() const { return q_.plane_positions / 2; }
  uint16_t* pairs_of(int copy, int half, int band) const {
    return pairs_ + ((int64_t{2} * copy + half) * q_.chunk_bands + band) * pair_rows() * kPairValues;
  }
  const uint16_t** column_pixels_of(int plane, int band) const {
    return column_pixels_ + (int64_t{plane} * q_.chunk_bands + band) * q_.plane_positions;
  }

  // Pointers to the pixels at `count` positions; to zeros where there is none.
  void find_grad(const Band& band, int count, const uint16_t** to) const {
    const auto* from = static_cast<const uint16_t*>(q_.grad) + (band.image * q_.oh + band.row) * q_.ow * q_.k;
    const uint16_t** const end = to + count;
    for (int i = 0; i < band.rows; ++i) {
      for (int j = 0; j < q_.ow; ++j, from += q_.k) *to++ = from;
      for (int j = q_.ow; j < q_.width; ++j) *to++ = zeros_;
    }
    while (to < end) *to++ = zeros_;
  }

  void find_x(const Band& band, const Taps::Plane& plane, int count, const uint16_t** to) const {
    int64_t image = band.image;
    int64_t row = band.row;
    for (int i = 0; count > 0; ++i) {
      const int in_row = min(count, q_.width);
      const int64_t h = row * q_.stride_h - q_.pad_h + plane.h;
      const bool exists = h >= 0 && h < q_.h && (!is_pointwise(q_) || i < band.rows);
      const auto* from = static_cast<const uint16_t*>(q_.x) + (exists ? (image * q_.h + h) * q_.w * q_.c : 0);
      int64_t w = int64_t{plane.w} - q_.pad_w;
      for (int j = 0; j < in_row; ++j, w += q_.stride_w)
        *to++ = exists && w >= 0 && w < q_.w ? from + w * q_.c : zeros_;
      count -= in_row, ++row;
      if (is_pointwise(q_) && row == q_.oh) row = 0, ++image;
    }
  }

  uint16_t* padded_of(int band) const { return padded_ + int64_t{band} * padded_rows_ * padded_columns_ * q_.c; }

  // Copies the rows of x under a band.
  void pad(const Band& band, uint16_t* to) const {
    const int64_t size = int64_t{padded_columns_} * q_.c, row = int64_t{q_.w} * q_.c;
    const int64_t left = int64_t{q_.pad_w} * q_.c, inside = size - left < row ? size - left : row;
    for (int i = 0; i < padded_rows_; ++i, to += size) {
      const int64_t h = int64_t{band.row} * q_.stride_h - q_.pad_h + i;
      simd::direct::fill_zeros(to, size);
      if (h >= 0 && h < q_.h && inside > 0)
        memcpy(to + left, static_cast<const uint16_t*>(q_.x) + (band.image * q_.h + h) * row, inside * sizeof *to);
    }
  }

  void find_padded(const Taps::Plane& plane, const uint16_t* padded, const uint16_t** to) const {
    for (int row = plane.h, count = q_.plane_positions; count > 0; row += q_.stride_h) {
      const uint16_t* from = row < padded_rows_ ? padded + int64_t{row} * padded_columns_ * q_.c : zeros_;
      const int step = row < padded_rows_ ? q_.stride_w * q_.c : 0;
      for (int j = 0; j < q_.width && count > 0; ++j, --count, from += step) *to++ = from;
    }
  }

  // A pixel's channels of a block, from channel `at` on.
  template <bool kActivates>
  inline __attribute__((always_inline)) Words::Reg load(const uint16_t* pixel, int at, Words::Mask exist) const {
    const Words::Reg v = Words::load(pixel + at, exist);
    __builtin_prefetch(pixel + at + kBlock, 0, 2);  // read with the next block: too far apart for the hardware
    if constexpr (kActivates) {
      if (pixel == zeros_) return v;
      const V::Reg low = V::fmadd(Words::low(v), V::load(q_.scale + at), V::load(q_.shift + at));
      const V::Reg high = V::fmadd(Words::high(v), V::load(q_.scale + at + kLanes), V::load(q_.shift + at + kLanes));
      return Words::keep(exist, Words::narrow(simd::relu<V>(low), simd::relu<V>(high)));
    } else {
      return v;
    }
  }

  template <bool kActivates>
  void transpose() {
    const int64_t all_steps = int64_t{bands_} * steps();
    for (int m = m0_; m < m1_; ++m) {
      const int at = m * kBlock;
      const Words::Mask exist = Words::first(rows_of(q_) - at);
      auto* low_tile = rows_ + int64_t{2} * (m - m0_) * all_steps * kTileValues;
      auto* high_tile = low_tile + all_steps * kTileValues;
      const uint16_t* const* pixel = row_pixels_;
      for (int64_t step = 0; step < all_steps; ++step, pixel += kPositions) {
        V::Reg low[kGroup], high[kGroup];
#pragma GCC unroll 16
        for (int i = 0; i < kGroup; ++i) {
          const Words::Reg a = load<kActivates>(pixel[2 * i], at, exist);
          const Words::Reg b = load<kActivates>(pixel[2 * i + 1], at, exist);
          low[i] = Words::interleave_low(a, b), high[i] = Words::interleave_high(a, b);
        }
        V::transpose(low);
        V::transpose(high);
#pragma GCC unroll 16
        for (int i = 0; i < kGroup; ++i) {
          Bf16::store_pairs(low_tile + i * kPairValues, low[i]);
          Bf16::store_pairs(high_tile + i * kPairValues, high[i]);
        }
        low_tile += kTileValues, high_tile += kTileValues;
      }
    }
  }

  template <bool kActivates>
  void interleave(int block, const uint16_t* const* pixel, int count, uint16_t* low) const {
    const int at = block * kBlock;
    const Words::Mask exist = Words::first(columns_of(q_) - at);
    uint16_t* high = low + int64_t{q_.chunk_bands} * pair_rows() * kPairValues;
    for (int i = 0; i < count; ++i, pixel += 2, low += kPairValues, high += kPairValues) {
      const Words::Reg a = load<kActivates>(pixel[0], at, exist), b = load<kActivates>(pixel[1], at, exist);
      Bf16::store_pairs(low, Words::interleave_low(a, b));
      Bf16::store_pairs(high, Words::interleave_high(a, b));
    }
  }

  const DirectGradient& q_;
  const Taps& taps_;
  const int m0_, m1_;  // row blocks
  int first_ = 0, bands_ = 0;
  const uint16_t* zeros_;
  const uint16_t **row_pixels_, **column_pixels_;
  uint16_t* padded_ = nullptr;
  int padded_rows_ = 0, padded_columns_ = 0;
  uint16_t *rows_, *pairs_;
};

inline int64_t sums_at(const DirectGradient& q, int64_t m, int n, int tap) {
  return ((m * column_blocks(q) + n) * taps_of(q) + tap) * 4 * kTileFloats;
}

// sums += products of row block m and column block n at a tap, over the positions of a chunk.
inline void multiply(const Chunk& chunk, int m, int tap, bool first, float* sums) {
  if (first) {
    zero<0>(), zero<1>(), zero<2>(), zero<3>();
  } else {
    amx::load<0>(sums, kMostRowBytes);
    amx::load<1>(sums + kTileFloats, kMostRowBytes);
    amx::load<2>(sums + 2 * kTileFloats, kMostRowBytes);
    amx::load<3>(sums + 3 * kTileFloats, kMostRowBytes);
  }
  for (int band = 0; band < chunk.bands(); ++band) {
    const uint16_t *a0 = chunk.row_tiles(m, 0, band), *a1 = chunk.row_tiles(m, 1, band);
    const uint16_t *b0 = chunk.column_tiles(tap, 0, band), *b1 = chunk.column_tiles(tap, 1, band);
    for (int64_t at = 0; at < int64_t{chunk.steps()} * kTileValues; at += kTileValues) {
      amx::load<4>(a0 + at, kMostRowBytes);
      amx::load<6>(b0 + at, kMostRowBytes);
      amx::load<7>(b1 + at, kMostRowBytes);
      amx::load<5>(a1 + at, kMostRowBytes);
      amx::multiply<0, 4, 6>();
      amx::multiply<1, 4, 7>();
      amx::multiply<2, 5, 6>();
      amx::multiply<3, 5, 7>();
    }
  }
  store<0>(sums, kMostRowBytes);
  store<1>(sums + kTileFloats, kMostRowBytes);
  store<2>(sums + 2 * kTileFloats, kMostRowBytes);
  store<3>(sums + 3 * kTileFloats, kMostRowBytes);
}

inline void sum(const DirectGradient& q, int64_t begin, int64_t end) {
  const Taps taps(q);
  const UsesTiles tiles;
  for (int64_t task = begin; task < end; ++task) {
    const int part = static_cast<int>(task / q.groups), group = static_cast<int>(task % q.groups);
    const int m0 = static_cast<int>(row_blocks(q) * group / q.groups);
    const int m1 = static_cast<int>(row_blocks(q) * (group + 1) / q.groups);
    const int first = static_cast<int>(int64_t{q.chunks} * part / q.parts);
    const int last = static_cast<int>(int64_t{q.chunks} * (part + 1) / q.parts);
    float* sums = q.sums + part * q.part_floats;
    Chunk chunk(q, taps, m0, m1);
    for (int i = first; i < last; ++i) {
      chunk.start(i);
      for (int n = 0; n < column_blocks(q); ++n) {
        chunk.use_columns(n);
        for (int m = m0; m < m1; ++m)
          for (int tap = 0; tap < taps_of(q); ++tap) multiply(chunk, m, tap, i == first, sums + sums_at(q, m, n, tap));
      }
    }
  }
}

// Two tiles' rows of 16 columns, summed over the parts, as 32 neighbouring columns.
inline Words::Reg total(const DirectGradient& q, int64_t at) {
  const float* from = q.sums + at;
  V::Reg low = V::load(from), high = V::load(from + kTileFloats);
  for (int part = 1; part < q.parts; ++part) {
    from += q.part_floats;
    low += V::load(from), high += V::load(from + kTileFloats);
  }
  return Words::narrow_interleaved(low, high);
}

inline bool finish(const DirectGradient& q, void* weight, const int64_t strides[4], int64_t begin, int64_t end) {
  const int64_t row_stride = strides[q.rows_are_x ? 1 : 0];
  const auto column_offset = [&](int column) {
    if (q.joins_taps) return column % q.c * strides[1] + column / q.c * strides[3];
    return column * strides[q.rows_are_x ? 0 : 1];
  };
  const bool dense = column_offset(columns_of(q) - 1) == columns_of(q) - 1 && column_offset(1) == 1;
  Words::Reg largest{};
  uint16_t block[kBlock][kBlock];
  for (int64_t m = begin; m < end; ++m)
    for (int n = 0; n < column_blocks(q); ++n)
      for (int tap = 0; tap < taps_of(q); ++tap) {
        const int64_t at = sums_at(q, m, n, tap), first = m * kBlock;
        const int rows = static_cast<int>(rows_of(q) - first < kBlock ? rows_of(q) - first : kBlock);
        const int columns = min(columns_of(q) - n * kBlock, kBlock);
        const Words::Mask exist = Words::first(columns);
        auto* const to = static_cast<uint16_t*>(weight) + first * row_stride + tap / taps_in_row(q) * strides[2] +
                         tap % taps_in_row(q) * strides[3];
        for (int half = 0; half < 2; ++half)
          for (int i = 0; i < kGroup; ++i) {
            const int row = channel_of(half, i);
            if (row >= rows) continue;
            const Words::Reg v = Words::keep(exist, total(q, at + (2 * half * kGroup + i) * kLanes));
            largest = Words::larger_magnitude(largest, v);
            if (dense)
              Words::store(to + row * row_stride + n * kBlock, v, exist);
            else
              Words::store(block[row], v, exist);
          }
        if (dense) continue;
        for (int column = 0; column < columns; ++column)
          for (int row = 0; row < rows; ++row)
            to[row * row_stride + column_offset(n * kBlock + column)] = block[row][column];
      }
  return Words::are_finite(largest);
}

inline bool tile(DirectGradient& q, int threads) {
  // Constants of a Sapphire Rapids.
  constexpr int kChunk = 256;  // positions
  constexpr int kLeastChannels = 8;
  constexpr int64_t kRowBytes = 512 << 10;    // of a task's tiles of rows
  constexpr int64_t kMostScratch = 64 << 20;  // bytes of a thread's pairs, and of padded rows
  const bool pointwise = is_pointwise(q);
  q.rows_are_x = pointwise && q.c < q.k;
  q.joins_taps = !pointwise && q.s * q.c <= kBlock && q.dil_w == 1 && !q.scale;
  if (!q.joins_taps && q.c < kLeastChannels) return false;                    // mostly idle lanes
  const int64_t beyond = int64_t{taps_in_row(q) - 1} * q.dil_w / q.stride_w;  // positions
  int64_t shared = 0;  // a row's right padding that is the next row's left padding
  if (q.stride_w == 1 && beyond > 0) {
    const int64_t right = q.ow + beyond - q.pad_w - q.w;
    shared = right < q.pad_w ? right : q.pad_w;
    if (shared > beyond) shared = beyond;
    if (shared < 0) shared = 0;
  }
  const int64_t width = q.ow + beyond - shared;
  const int64_t image_rows = pointwise ? int64_t{q.n} * q.oh : q.oh;
  int64_t rows = kChunk / width;
  if (rows > image_rows) rows = image_rows;
  if (rows < 1) rows = 1;
  const int64_t image_bands = (image_rows + rows - 1) / rows;
  rows = (image_rows + image_bands - 1) / image_bands;
  const int64_t positions = (rows * width + kPositions - 1) / kPositions * kPositions;
  const int64_t last = int64_t{q.r - 1} * q.dil_h / q.stride_h * width + beyond;
  const int64_t plane = (positions + last + 1) / 2 * 2;
  const int64_t copies = pointwise ? 1 : 2 * int64_t{min(q.stride_h, q.r)} * min(q.stride_w, taps_in_row(q));
  const int64_t in_chunk = positions < kChunk ? kChunk / positions : 1;
  if (copies * in_chunk * plane * kBlock * int64_t{sizeof(uint16_t)} > kMostScratch) return false;
  const int64_t padded_rows = (rows - 1) * q.stride_h + int64_t{q.r - 1} * q.dil_h + 1;
  const int64_t padded_columns = int64_t{q.ow - 1} * q.stride_w + q.s;
  const int64_t most_padded = kMostScratch / (in_chunk * q.c * int64_t{sizeof(uint16_t)});  // columns of all rows
  if (q.joins_taps && padded_rows > most_padded / padded_columns) return false;
  if (q.n > INT32_MAX / image_bands) return false;
  q.width = static_cast<int>(width), q.band_rows = static_cast<int>(rows);
  q.band_positions = static_cast<int>(positions), q.plane_positions = static_cast<int>(plane);
  q.image_bands = static_cast<int>(image_bands);
  q.bands = static_cast<int>(pointwise ? image_bands : image_bands * q.n);
  q.chunk_bands = static_cast<int>(in_chunk < q.bands ? in_chunk : q.bands);
  q.chunks = ceil_div(q.bands, q.chunk_bands);

  q.part_floats = row_blocks(q) * column_blocks(q) * taps_of(q) * 4 * kTileFloats;
  // Parts and chunks fix the order of summation. They depend only on the shape, so results are bit-identical for any
  // number of threads. A part must be large enough to justify writing and reading its sums.
  constexpr int64_t kSumBytes = 16 << 20, kMostParts = 16, kPartPositions = 4096;
  const int64_t fit = kSumBytes / (q.part_floats * int64_t{sizeof(float)});
  const int64_t worth = int64_t{q.bands} * q.band_positions / kPartPositions;
  for (q.parts = 1; 2 * q.parts <= fit && 2 * q.parts <= worth && 2 * q.parts <= kMostParts && 2 * q.parts <= q.chunks;)
    q.parts *= 2;
  // Each group makes the columns' pairs anew: as few as keep a task's tiles of rows in L2 and all threads busy.
  const int64_t bytes = row_blocks(q) * kBlock * q.chunk_bands * q.band_positions * int64_t{sizeof(uint16_t)};
  q.groups = static_cast<int>((bytes + kRowBytes - 1) / kRowBytes);
  while (q.parts * q.groups < 4 * threads && q.parts * q.groups % threads && q.groups < row_blocks(q)) ++q.groups;
  if (q.groups > row_blocks(q)) q.groups = static_cast<int>(row_blocks(q));
  q.tasks = int64_t{q.parts} * q.groups;
  return true;
}

}  // namespace
}  // namespace resnet_fused::cpu::amx::weight_gradient
