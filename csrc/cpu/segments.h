// Splits a sum over N, H and W into segments. The split depends only on the shape, so any number of threads adds the
// same parts in the same order and the result is bit-identical.
#pragma once
#include <algorithm>

#include "common/parallel.h"
#include "common/problem.h"
#include "cpu/bn_kernels.h"

namespace resnet_fused::cpu {

// Segments of a dense tensor: groups of pixels (NHWC) or images (NCHW), with all of their channels.
class Segments {
 public:
  Segments(const Tensor& x, bool channels_last) : channels_(x.size(1)), area_(x.size(2) * x.size(3)) {
    planes_ = !channels_last && area_ != 1;
    units_ = planes_ ? x.size(0) : x.size(0) * area_;
    // Enough segments to occupy the threads, few enough that adding them up is cheap
    if (planes_)
      each_ = std::max(ceil(kLeastPlane, std::max<int64_t>(area_, 1)), ceil(units_, kMost));
    else
      each_ = std::max({kLeastPixels, kTask / std::max<int64_t>(channels_, 1), ceil(units_, kMost)});
  }

  int64_t channels() const { return channels_; }
  int64_t area() const { return area_; }
  bool planes() const { return planes_; }
  int64_t count() const { return area_ == 0 || channels_ == 0 ? 0 : ceil(units_, each_); }
  int64_t pixels(int64_t segment) const { return (end(segment) - begin(segment)) * (planes_ ? area_ : 1); }

  // Offset of `channel` (in NHWC, and of the channels after it) at a pixel of a segment
  int64_t offset(int64_t segment, int64_t channel, int64_t pixel) const {
    if (!planes_) return (begin(segment) + pixel) * channels_ + channel;
    return ((begin(segment) + pixel / area_) * channels_ + channel) * area_ + pixel % area_;
  }

  // Calls visit(segment, channel, width) in parallel, for channels [channel, channel + width) of every segment. The
  // width does not affect any sum.
  template <typename Visit>
  void for_each(const Visit& visit) const {
    if (count() == 0) return;
    const int64_t width =
        planes_ ? std::clamp<int64_t>(kTask / std::max<int64_t>(each_ * area_, 1), 1, channels_) : channels_;
    const int64_t parts = ceil(channels_, width);
    parallel_for(0, count() * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t channel = i % parts * width;
        visit(i / parts, channel, std::min(width, channels_ - channel));
      }
    });
  }

  // run(offset, block): the contiguous elements of these channels, front to back
  template <typename Run>
  void for_each_block(int64_t segment, int64_t channel, int64_t width, const Run& run) const {
    if (!planes_) return run(begin(segment) * channels_, Block{pixels(segment), channels_, false});
    for (int64_t n = begin(segment); n < end(segment); ++n)
      run((n * channels_ + channel) * area_, Block{area_, width, true});
  }

 private:
  static constexpr int64_t kLeastPixels = 128, kLeastPlane = 512, kTask = 16384, kMost = 128;
  static int64_t ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
  int64_t begin(int64_t segment) const { return segment * each_; }
  int64_t end(int64_t segment) const { return std::min(units_, begin(segment) + each_); }

  int64_t channels_, area_, units_, each_;
  bool planes_;
};

// Blocks of a dense tensor for elementwise work. Calls run(offset, channel, block) in parallel.
template <typename Run>
void for_each_block(const Tensor& x, bool channels_last, const Run& run) {
  constexpr int64_t kGrain = 16384;  // minimum elements per thread
  const int64_t channels = x.size(1), area = x.size(2) * x.size(3);
  if (x.numel() == 0) return;
  const bool planes = !channels_last && area != 1;
  const int64_t step = planes ? area : channels;
  parallel_for(0, x.numel() / step, std::max<int64_t>(1, kGrain / step), [&](int64_t begin, int64_t end) {
    if (!planes) return run(begin * channels, int64_t{0}, Block{end - begin, channels, false});
    while (begin < end) {  // at most to the end of an image
      const int64_t channel = begin % channels, width = std::min(end - begin, channels - channel);
      run(begin * area, channel, Block{area, width, true});
      begin += width;
    }
  });
}

}  // namespace resnet_fused::cpu
