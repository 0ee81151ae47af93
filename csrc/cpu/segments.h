// How a sum over N, H and W is cut: by its shape alone, so that any number of threads adds the same parts in the same
// order and gets the same bits.
#pragma once
#include <algorithm>

#include "common/problem.h"

namespace resnet_fused::cpu {

// Segments of one tensor: runs of pixels (NHWC), or of images, a channel at a time (NCHW).
class Segments {
 public:
  Segments(const Tensor& x, bool channels_last) : channels_(x.size(1)), area_(x.size(2) * x.size(3)) {
    const int64_t images = x.size(0), pixels = images * area_;
    nhwc_ = channels_last || area_ == 1;
    units_ = nhwc_ ? pixels : images;
    if (nhwc_)  // enough to occupy a thread, not more than kMost to add up
      each_ = std::max({kLeastPixels, kLeastElements / std::max<int64_t>(channels_, 1), ceil(pixels, kMost)});
    else
      each_ = std::max(ceil(kLeastElements, std::max<int64_t>(area_, 1)), ceil(images, kMost));
  }

  bool nhwc() const { return nhwc_; }
  int64_t channels() const { return channels_; }
  int64_t area() const { return area_; }
  int64_t count() const { return area_ == 0 ? 0 : ceil(units_, each_); }
  int64_t begin(int64_t segment) const { return segment * each_; }
  int64_t end(int64_t segment) const { return std::min(units_, begin(segment) + each_); }
  int64_t pixels(int64_t segment) const { return (end(segment) - begin(segment)) * (nhwc_ ? 1 : area_); }

  // visit(segment, channel, width, offsets...): in parallel, every part that is summed on its own. A part is
  // `width` channels of its segment: all of them in NHWC, one in NCHW.
  template <typename Visit>
  void for_each(const Visit& visit) const {
    const int64_t width = nhwc_ ? channels_ : 1, parts = nhwc_ ? 1 : channels_;
    if (channels_ == 0) return;
    torch::stable::parallel_for(0, count() * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) visit(i / parts, i % parts, width);
    });
  }

  // run(offset, pixels): the contiguous runs of elements that a part consists of, first to last.
  template <typename Run>
  void for_each_run(int64_t segment, int64_t channel, const Run& run) const {
    if (nhwc_)
      run(begin(segment) * channels_, pixels(segment));
    else
      for (int64_t n = begin(segment); n < end(segment); ++n) run((n * channels_ + channel) * area_, area_);
  }

  // Offset of the pixel-th element of a part
  int64_t offset(int64_t segment, int64_t channel, int64_t pixel) const {
    if (nhwc_) return (begin(segment) + pixel) * channels_;
    return ((begin(segment) + pixel / area_) * channels_ + channel) * area_ + pixel % area_;
  }

 private:
  static constexpr int64_t kLeastPixels = 128, kLeastElements = 16384, kMost = 128;
  static int64_t ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

  int64_t channels_, area_, units_, each_;
  bool nhwc_;
};

}  // namespace resnet_fused::cpu
