// A task's input as AMX reads it: rows of positions, one for each output column and a few more, from which 16
// neighbouring positions fill a tile register. A group may run over the end of a row into the next one: the positions
// between them have no output.
#pragma once
#include "cpu/amx/element.h"

namespace resnet_fused::cpu::amx {
namespace {

using simd::Scratch;
using simd::direct::ceil_div;
using simd::direct::copy_pixels;
using simd::direct::copy_slab;
using simd::direct::min;
using simd::direct::round_up;

struct Group {
  const uint16_t* first;   // the first position's first tap
  int32_t pixels[kGroup];  // the numbers of its output pixels, -1 for none
};

// Output rows [first, last) of an image.
struct Band {
  int image, first, last;
};

// How the rows under a convolution are copied. Rows under a vertical stride of n are dealt into n planes, so that
// neighbouring output rows lie a row apart in each.
enum class Copies {
  kColumns,   // whole columns: channels padded to whole steps
  kGathered,  // only the columns that a 1x1 reads
  kPacked,    // columns without padding between channels. A step multiplies the first channels of the columns after its
              // taps by zero weights, so they must be finite.
  kPatches,   // for each output column the values under it, padded once
};

inline Copies copies_of(const DirectConv& q, bool finite) {
  if (simd::direct::patches<Bf16>(q.c, q.s)) return finite && q.dil_w == 1 ? Copies::kPacked : Copies::kPatches;
  return q.s == 1 && q.stride_w > 1 ? Copies::kGathered : Copies::kColumns;
}

class Layout {
 public:
  // finite: copy() may find that a value is not, and must then be repeated with a layout of false.
  Layout(const DirectConv& q, bool finite) : q_(&q), how_(copies_of(q, finite)) {
    const bool by_output = how_ == Copies::kGathered || how_ == Copies::kPatches;
    const bool by_row = how_ == Copies::kPacked || how_ == Copies::kPatches;
    values_ = by_row ? simd::direct::row_values<Bf16>(q.c, q.s) : round_up(q.c, Bf16::kPack);
    columns_between_ = by_output ? 1 : q.stride_w;
    padded_ = (q.ow - 1) * q.stride_w + (q.s - 1) * q.dil_w + 1;
    const int right = padded_ - q.pad_w - q.w;
    if (how_ == Copies::kColumns && right > 0)  // each output column keeps a position
      shared_ = min(min(q.pad_w, right), int64_t{q.s - 1} * q.dil_w);
    // zeros for what a step multiplies after the last taps
    const int more = how_ == Copies::kPacked ? ceil_div(values_ - q.s * q.c, q.c) : 0;
    columns_ = by_output ? q.ow : round_up(padded_ - shared_ + more, q.stride_w);
    step_ = how_ == Copies::kPacked ? q.c : values_;
    if (position_bytes() % 4096 == 0) step_ += simd::direct::kCacheLine / int{sizeof(uint16_t)};  // not all in one set
  }

  // Bytes of a slab of `bands` bands of at most `rows` output rows.
  int64_t bytes(int64_t bands, int64_t rows) const {
    const int64_t beyond = int64_t{kGroup} * columns_between_ + shared_;  // columns that a last group may read
    const int64_t all = (bands * planes() * plane_rows(rows) * columns_ + beyond) * step_ + values_;
    return all * int64_t{sizeof(uint16_t)};
  }

  // The runs under a position. Returns how many.
  int runs(int64_t most_rows, int64_t* offsets, int& steps) const {
    const bool by_row = how_ == Copies::kPacked || how_ == Copies::kPatches;
    const bool whole_rows = by_row || q_->s == 1 || (q_->dil_w == 1 && step_ == values_);
    const int per_row = whole_rows ? 1 : q_->s;
    for (int i = 0; i < q_->r * per_row; ++i) {
      const int row = i / per_row * q_->dil_h;
      offsets[i] = (slab_row(row, most_rows) * columns_ + int64_t{i % per_row} * q_->dil_w) * step_;
    }
    steps = (by_row ? values_ : whole_rows ? q_->s * values_ : values_) / Bf16::kPack;
    return q_->r * per_row;
  }

  // Copies what a band reads; `number`: that of the band. Returns false if a value is not finite but must be.
  bool copy(const Band& band, int number, int64_t most_rows, uint16_t* slab) {
    const int top = band.first * q_->stride_h - q_->pad_h, count = input_rows(band.last - band.first);
    uint16_t* to = slab + number * planes() * plane_rows(most_rows) * columns_ * step_;
    bool good = true;
    for (int row = 0; row < count && good; ++row)
      if (is_read(row)) good = copy_row(band.image, top + row, to + slab_row(row, most_rows) * columns_ * step_);
    return good;
  }

  // Appends the groups of a band, whose first pixel is `pixel` in the output.
  template <typename Groups>
  void add_groups(const Band& band, int number, int64_t most_rows, int64_t pixel, const uint16_t* slab,
                  Groups& groups) const {
    const uint16_t* from = slab + number * planes() * plane_rows(most_rows) * columns_ * step_;
    const int width = columns_ / columns_between_;  // positions of a row
    const int rows = band.last - band.first;
    for (int row = 0, column = 0; row < rows;) {
      Group& group = groups.add();
      group.first = from + (int64_t{row} * columns_ + int64_t{column} * columns_between_) * step_;
      for (int m = 0; m < kGroup; ++m) {
        group.pixels[m] =
            row < rows && column < q_->ow ? static_cast<int32_t>(pixel + int64_t{row} * q_->ow + column) : -1;
        if (++column == width) column = 0, ++row;
      }
      if (column >= q_->ow) column = 0, ++row;
    }
  }

  int64_t position_bytes() const { return int64_t{columns_between_} * step_ * int64_t{sizeof(uint16_t)}; }

 private:
  int planes() const { return q_->stride_h; }
  int input_rows(int64_t rows) const {
    return static_cast<int>((rows - 1) * q_->stride_h + int64_t{q_->r - 1} * q_->dil_h + 1);
  }
  int64_t plane_rows(int64_t rows) const { return ceil_div(input_rows(rows), planes()); }
  int64_t slab_row(int row, int64_t most_rows) const { return row % planes() * plane_rows(most_rows) + row / planes(); }
  // Whether a tap reads the plane of this row.
  bool is_read(int row) const {
    for (int tap = 0; tap < q_->r; ++tap)
      if (int64_t{tap} * q_->dil_h % planes() == row % planes()) return true;
    return false;
  }

  bool copy_row(int image, int h, uint16_t* to) {
    const int64_t size = int64_t{columns_} * step_;
    if (h < 0 || h >= q_->h) {
      simd::direct::fill_zeros(to, size + int64_t{shared_} * step_);
    } else if (how_ == Copies::kPatches) {
      copy_patches(image, h, to);
    } else if (how_ == Copies::kGathered) {
      gather(image, h, to);
    } else {
      copy_slab<Bf16>(*q_, image, h, 1, columns_, step_, to);
      if (shared_) simd::direct::fill_zeros(to + size, int64_t{shared_} * step_);
      if (how_ == Copies::kPacked) return all_finite(to, size);
    }
    return true;
  }

  static bool all_finite(const uint16_t* from, int64_t count) {
    Words::Reg largest{};
    for (int64_t i = 0; i < count; i += Words::kLanes)
      largest = Words::larger_magnitude(largest, Words::load(from + i, Words::first(count - i)));
    return Words::are_finite(largest);
  }

  void gather(int image, int h, uint16_t* to) {
    const auto* x = static_cast<const uint16_t*>(q_->x) + image * q_->xn + h * q_->xh;
    for (int j = 0; j < q_->ow; ++j, to += step_) {
      const int column = j * q_->stride_w - q_->pad_w;
      if (column < 0 || column >= q_->w)
        simd::direct::fill_zeros(to, step_);
      else
        copy_pixels<Bf16>(*q_, x + column * q_->xw, 1, step_, to);
    }
  }

  void copy_patches(int image, int h, uint16_t* to) {
    static thread_local Scratch scratch;
    auto* row = static_cast<uint16_t*>(scratch.get(int64_t{padded_} * q_->c * sizeof(uint16_t)));
    copy_slab<Bf16>(*q_, image, h, 1, padded_, q_->c, row);
    const int values = q_->s * q_->c;
    const uint16_t* from = row;
    for (int j = 0; j < q_->ow; ++j, to += step_, from += int64_t{q_->stride_w} * q_->c) {
      for (int tap = 0; tap < q_->s; ++tap)
        memcpy(to + tap * q_->c, from + int64_t{tap} * q_->dil_w * q_->c, q_->c * sizeof(uint16_t));
      simd::direct::fill_zeros(to + values, step_ - values);
    }
  }

  const DirectConv* q_;
  Copies how_;
  int values_, step_;     // operands of a column, or of a row of taps; elements between columns
  int columns_between_;   // positions
  int columns_, padded_;  // of a row of the slab; that the taps reach
  int shared_ = 0;        // columns of padding that a row has in common with the next
};

}  // namespace
}  // namespace resnet_fused::cpu::amx
