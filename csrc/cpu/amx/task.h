// The direct convolution with AMX. A task computes some output rows of some images and all, or a part, of the output
// channels: it copies their input (input.h), and multiplies blocks of groups by channel blocks (blocks.h). A flattened
// 1x1 reads its input in place.
#pragma once
#include "cpu/amx/blocks.h"
#include "cpu/amx/tiling.h"

namespace resnet_fused::cpu::amx {
namespace {

// The groups of a task, in a thread's scratch.
class Groups {
 public:
  void start(int64_t most) { data_ = static_cast<Group*>(scratch_.get(most * sizeof(Group))), count_ = 0; }
  Group& add() { return data_[count_++]; }
  int count() const { return count_; }
  const Group& operator[](int i) const { return data_[i]; }

 private:
  static thread_local Scratch scratch_;
  Group* data_ = nullptr;
  int count_ = 0;
};

thread_local Scratch Groups::scratch_;
thread_local Scratch slab_scratch, pool_scratch, weights_scratch;

class Task {
 public:
  Task(const DirectConv& q, const DirectTiling& t)
      : q_(q),
        t_(t),
        layout_(q, /*finite=*/true),
        reduction_(int64_t{q.r} * simd::direct::row_values<Bf16>(q.c, q.s)) {}

  void run(int64_t task) {
    const int block = static_cast<int>(task / t_.k_groups), group = static_cast<int>(task % t_.k_groups);
    const int64_t channel_blocks = ceil_div(q_.k, kBlock);
    k0_ = static_cast<int>(channel_blocks * group / t_.k_groups * kBlock);
    k1_ = static_cast<int>(channel_blocks * (group + 1) / t_.k_groups * kBlock);
    if (k1_ > q_.k) k1_ = q_.k;
    const int64_t first = t_.units * block / t_.blocks, last = t_.units * (block + 1) / t_.blocks;
    if (first == last) return;
    if (t_.flat)
      flat(first * kUnit, last * kUnit);
    else if (q_.pool_r)
      pooled(first, last);
    else
      plain(first, last);
  }

  // Whether all weights that the tasks packed are finite.
  bool finite() const { return finite_; }

 private:
  void flat(int64_t first, int64_t last) {
    const int64_t pixels = int64_t{q_.n} * q_.oh * q_.ow;
    if (last > pixels) last = pixels;
    const int64_t count = last - first;
    const auto* x = static_cast<const uint16_t*>(q_.x) + first * q_.c;
    int64_t step = q_.c;
    if (count < kGroup || step * sizeof(uint16_t) % 4096 == 0) {  // else a group's pixels would share an L1 set
      step += simd::direct::kCacheLine / sizeof(uint16_t);
      auto* slab = slab_of((count < kGroup ? kGroup : count) * step);
      for (int64_t i = 0; i < count; ++i) memcpy(slab + i * step, x + i * q_.c, q_.c * sizeof(uint16_t));
      x = slab;
    }
    groups_.start(ceil_div(count, kGroup));
    for (int64_t i = 0; i < count; i += kGroup) {
      Group& group = groups_.add();
      const int64_t start =
          i + kGroup <= count || count < kGroup ? i : count - kGroup;  // reads no pixel that is not there
      group.first = x + start * step;
      for (int m = 0; m < kGroup; ++m) {
        const int64_t at = start + m;
        group.pixels[m] = at >= i && at < count ? static_cast<int32_t>(at) : -1;
      }
    }
    const int64_t offset = 0;
    multiply({&offset, 1, q_.c / Bf16::kPack, nullptr, 0}, step * int64_t{sizeof(uint16_t)}, pixel_of(q_.out, first),
             pixel_of(q_.residual, first));
  }

  // Output rows [first, last) of all images.
  void plain(int64_t first, int64_t last) {
    if (!plain_once(first, last)) use_patches(), plain_once(first, last);
  }

  // Pooled rows [first, last) of all images: the convolution's rows under them, then the pool.
  void pooled(int64_t first, int64_t last) {
    for (int64_t row = first, rows; row < last; row += rows) {
      const int image = static_cast<int>(row / q_.ph), from = static_cast<int>(row % q_.ph);
      rows = last - row < q_.ph - from ? last - row : q_.ph - from;
      const int to = static_cast<int>(from + rows);
      if (!pooled_once(image, from, to)) use_patches(), pooled_once(image, from, to);
    }
  }

  // After a value was not finite.
  void use_patches() { layout_ = Layout(q_, /*finite=*/false); }

  bool plain_once(int64_t first, int64_t last) {
    const int64_t most = last - first < q_.oh ? last - first : q_.oh, bands = (last - 1) / q_.oh - first / q_.oh + 1;
    start(bands, most);
    for (int64_t row = first, number = 0; row < last; ++number) {
      const int image = static_cast<int>(row / q_.oh), from = static_cast<int>(row % q_.oh);
      const Band band{image, from, static_cast<int>(from + (last - row < q_.oh - from ? last - row : q_.oh - from))};
      if (!layout_.copy(band, static_cast<int>(number), most, slab_)) return false;
      layout_.add_groups(band, static_cast<int>(number), most, (row - first) * q_.ow, slab_, groups_);
      row += band.last - band.first;
    }
    multiply_bands(most, pixel_of(q_.out, first * q_.ow), pixel_of(q_.residual, first * q_.ow));
    return true;
  }

  bool pooled_once(int image, int from, int to) {
    const int above = from * q_.pool_stride_h - q_.pool_pad_h;
    const int below = (to - 1) * q_.pool_stride_h - q_.pool_pad_h + q_.pool_r;
    const Band band{image, above > 0 ? above : 0, below < q_.oh ? below : q_.oh};
    const int64_t rows = band.last - band.first;
    start(1, rows);
    if (!layout_.copy(band, 0, rows, slab_)) return false;
    layout_.add_groups(band, 0, rows, 0, slab_, groups_);
    auto* conv = static_cast<uint16_t*>(pool_scratch.get((rows + 1) * q_.ow * q_.k * sizeof(uint16_t)));
    multiply_bands(rows, conv, nullptr);
    uint16_t* highest = conv + rows * q_.ow * q_.k;
    auto* out = static_cast<uint16_t*>(q_.out) + (int64_t{image} * q_.ph + from) * q_.pw * q_.k;
    for (int p = from; p < to; ++p, out += int64_t{q_.pw} * q_.k) pool_row(conv, band, p, highest, out);
    return true;
  }

  // Numbers that are not negative, and NaN, are ordered as their bits are. `highest`: scratch for a row.
  void pool_row(const uint16_t* conv, const Band& band, int p, uint16_t* highest, uint16_t* out) const {
    const int top = p * q_.pool_stride_h - q_.pool_pad_h;
    const int first = top > band.first ? top : band.first;
    const int last = top + q_.pool_r < band.last ? top + q_.pool_r : band.last;
    const int64_t row = int64_t{q_.ow} * q_.k;
    const uint16_t* from = conv + (first - band.first) * row;
    for (int64_t i = 0; i < row; i += kBlock) {
      const Words::Mask exist = Words::first(row - i);
      Words::Reg best = Words::load(from + i, exist);
      for (int h = 1; h < last - first; ++h) best = Words::larger(best, Words::load(from + h * row + i, exist));
      Words::store(highest + i, best, exist);
    }
    for (int j = 0; j < q_.pw; ++j) {
      const int left = j * q_.pool_stride_w - q_.pool_pad_w;
      const int begin = left > 0 ? left : 0, end = left + q_.pool_s < q_.ow ? left + q_.pool_s : q_.ow;
      for (int k = 0; k < q_.k; k += kBlock) {
        const Words::Mask exist = Words::first(q_.k - k);
        Words::Reg best{};
        for (int column = begin; column < end; ++column)
          best = Words::larger(best, Words::load(highest + int64_t{column} * q_.k + k, exist));
        Words::store(out + static_cast<int64_t>(j) * q_.k + k, best, exist);
      }
    }
  }

  // Pixel `at` of the output, or of the residual, which may be null.
  uint16_t* pixel_of(void* of, int64_t at) const { return of ? static_cast<uint16_t*>(of) + at * q_.k : nullptr; }
  const uint16_t* pixel_of(const void* of, int64_t at) const {
    return of ? static_cast<const uint16_t*>(of) + at * q_.k : nullptr;
  }

  uint16_t* slab_of(int64_t elements) {
    return static_cast<uint16_t*>(slab_scratch.get(static_cast<size_t>(elements) * sizeof(uint16_t)));
  }

  void start(int64_t bands, int64_t rows) {
    slab_ = static_cast<uint16_t*>(slab_scratch.get(layout_.bytes(bands, rows)));
    groups_.start(bands * rows * ceil_div(q_.ow, kGroup));
  }

  void multiply_bands(int64_t most_rows, uint16_t* out, const uint16_t* residual) {
    int64_t offsets[simd::direct::kMaxKernel];
    int steps;
    const int count = layout_.runs(most_rows, offsets, steps);
    multiply({offsets, count, steps, nullptr, 0}, layout_.position_bytes(), out, residual);
  }

  // Multiplies all groups by all channel blocks of the task.
  void multiply(const Runs& runs, int64_t step, uint16_t* out, const uint16_t* residual) {
    // Weights that fit in L2 are read again for each pair of groups, so that output and residual are accessed front to
    // back. Of larger ones each channel block stays in L1 or L2 for all groups.
    const int64_t bytes = reduction_ * (k1_ - k0_) * int64_t{sizeof(uint16_t)};
    const bool channels_inside = !t_.packs && bytes <= Bf16::V::kSlabBytes;
    if (channels_inside) {
      for (int i = 0; i < groups_.count(); i += 2)
        for (int k = k0_; k < k1_; k += kBlock) block(i, k, runs, step, out, residual);
    } else {
      if (t_.packs) own_weights_ = static_cast<uint16_t*>(weights_scratch.get(reduction_ * kBlock * sizeof(uint16_t)));
      Runs ahead = runs;
      const int64_t each = int64_t{ceil_div(groups_.count(), 2)} * runs.count * runs.steps;
      for (int k = k0_; k < k1_; k += kBlock) {
        const int left = min(k1_ - k, kBlock);
        Packer packer(q_, k, left, own_weights_);
        const int64_t next = k + kBlock < k1_ ? next_bytes(k + kBlock) : 0;
        ahead.next = next ? next_weights(k + kBlock) : nullptr;
        ahead.next_step = next / each;
        for (int i = 0; i < groups_.count(); i += 2, ahead.next += ahead.next_step * runs.count * runs.steps)
          block(i, k, ahead, step, out, residual, t_.packs && i == 0 ? &packer : nullptr);
        if (t_.packs) finite_ &= packer.finite();
      }
    }
    blocks_.finish();
  }

  int64_t next_bytes(int k) const {
    const int64_t channels = q_.k - k < kBlock ? q_.k - k : kBlock;
    return t_.packs ? channels * q_.weight_strides[0] * int64_t{sizeof(uint16_t)}
                    : channels * reduction_ * int64_t{sizeof(uint16_t)};
  }
  const char* next_weights(int k) const {
    return t_.packs ? static_cast<const char*>(q_.weight) + k * q_.weight_strides[0] * int64_t{sizeof(uint16_t)}
                    : static_cast<const char*>(q_.packed) + k * reduction_ * int64_t{sizeof(uint16_t)};
  }

  void block(int i, int k, const Runs& runs, int64_t step, uint16_t* out, const uint16_t* residual,
             Packer* packer = nullptr) {
    const Group& first = groups_[i];
    const Group* second = i + 1 < groups_.count() ? &groups_[i + 1] : nullptr;
    const uint16_t* weights = t_.packs ? own_weights_ : static_cast<const uint16_t*>(q_.packed) + k * reduction_;
    const Operands operands{first.first, second ? second->first : nullptr, step, weights, q_.k - k > kLanes ? 2 : 1};
    const Results results{first.pixels,
                          second ? second->pixels : nullptr,
                          q_.scale + k,
                          q_.shift + k,
                          residual ? residual + k : nullptr,
                          out + k,
                          q_.k,
                          q_.k - k,
                          q_.relu,
                          q_.pool_r != 0};
    blocks_.run(operands, runs, results, packer);
  }

  const DirectConv& q_;
  const DirectTiling& t_;
  Layout layout_;
  const int64_t reduction_;
  int k0_ = 0, k1_ = 0;  // the task's output channels
  uint16_t* slab_ = nullptr;
  uint16_t* own_weights_ = nullptr;  // of the channel block that this task packs
  bool finite_ = true;
  Groups groups_;
  Blocks blocks_;
};

inline bool run(const DirectConv& conv, const DirectTiling& tiling, int64_t begin, int64_t end) {
  Task task(conv, tiling);
  for (int64_t i = begin; i < end; ++i) task.run(i);
  return task.finite();
}

}  // namespace
}  // namespace resnet_fused::cpu::amx
