#include "cpu/bn_train.h"

#include <algorithm>
#include <cmath>

#include "cpu/bn_kernels.h"
#include "cpu/dispatch.h"
#include "cpu/scale_shift.h"
#include "cpu/segments.h"

namespace resnet_fused::cpu {

namespace {

// One value per channel, in the dtype of the statistics
template <typename Acc>
Tensor vector_of(const std::vector<double>& values, const Tensor& like) {
  Tensor t = torch::stable::empty({static_cast<int64_t>(values.size())},
                                  std::is_same_v<Acc, double> ? ScalarType::Double : ScalarType::Float, std::nullopt,
                                  like.device());
  std::transform(values.begin(), values.end(), static_cast<Acc*>(t.mutable_data_ptr()),
                 [](double v) { return static_cast<Acc>(v); });
  return t;
}

// Two float64 sums for every channel of every segment
struct Partials {
  explicit Partials(const Segments& s) : channels(s.channels()), values(2 * s.count() * channels) {}
  double* first(int64_t segment) { return values.data() + 2 * segment * channels; }
  double* second(int64_t segment) { return first(segment) + channels; }
  int64_t channels;
  std::vector<double> values;
};

// The definition, element by element, in float64
template <typename T>
void moments_of_channel(const T* x, const Segments& s, int64_t channel, double* mean, double* var) {
  const auto sum = [&](const auto& term) {
    double total = 0, pixels = 0;
    for (int64_t i = 0; i < s.count(); ++i) {
      pixels += static_cast<double>(s.pixels(i));
      for (int64_t p = 0; p < s.pixels(i); ++p) total += term(static_cast<double>(load(x[s.offset(i, channel, p)])));
    }
    return total / pixels;
  };
  *mean = sum([](double v) { return v; });
  *var = sum([&](double v) { return (v - *mean) * (v - *mean); });
}

// Joins the segments' means and sums of squared deviations in order (Chan, Golub, LeVeque 1979). Exact for any number
// of segments, and free of the cancellation in E[x^2] - E[x]^2.
void join(const Segments& s, Partials& parts, int64_t begin, int64_t end, double* mean, double* var) {
  double pixels = 0;
  for (int64_t i = 0; i < s.count(); ++i) {
    const double added = static_cast<double>(s.pixels(i)), total = pixels + added;
    const double *m = parts.first(i), *squares = parts.second(i);
    for (int64_t c = begin; c < end; ++c) {
      const double delta = m[c] - mean[c];
      mean[c] += delta * (added / total);
      var[c] += squares[c] + delta * delta * (pixels * added / total);
    }
    pixels = total;
  }
  for (int64_t c = begin; c < end; ++c) var[c] = pixels > 0 ? var[c] / pixels : std::nan("");
  if (pixels == 0) std::fill(mean + begin, mean + end, std::nan(""));
}

// Sample values of each channel of a segment: four neighbours at four places (NCHW: from the first image). Stored as
// rows of channels, as in NHWC.
template <typename T>
class Samples {
 public:
  Samples(const T* x, const Segments& s, int64_t segment, int64_t channel, int64_t width) {
    const int64_t pixels = s.planes() ? s.area() : s.pixels(segment);
    count_ = std::min(kMost, pixels);
    if (s.planes()) gathered_.resize(count_ * width);
    for (int64_t i = 0; i < count_; ++i) {
      const int64_t pixel = count_ < kMost ? i : i / 4 * (pixels / 4) + i % 4;
      const T* first = x + s.offset(segment, channel, pixel);
      rows_[i] = s.planes() ? &gathered_[i * width] : first;
      for (int64_t c = 0; c < width && s.planes(); ++c) gathered_[i * width + c] = first[c * s.area()];
    }
  }
  const T* const* rows() const { return rows_; }
  int64_t count() const { return count_; }

 private:
  static constexpr int64_t kMost = 16;
  int64_t count_;
  std::vector<T> gathered_;
  const T* rows_[kMost];
};

template <typename T, typename Acc>
std::tuple<Tensor, Tensor> moments(const Tensor& x, const Segments& s) {
  const BnKernels<T, Acc>& k = bn_kernels<T, Acc>();
  const T* px = data<T>(x);
  Partials parts(s);
  s.for_each([&](int64_t segment, int64_t channel, int64_t width) {
    const Samples<T> samples(px, s, segment, channel, width);
    std::vector<Acc> center(width);
    k.center(samples.rows(), samples.count(), width, center.data());
    double *mean = parts.first(segment) + channel, *squares = parts.second(segment) + channel;
    s.for_each_block(segment, channel, width,
                     [&](int64_t at, Block block) { k.sum_squares(px + at, center.data(), block, mean, squares); });
    const double share = 1.0 / static_cast<double>(s.pixels(segment));
    for (int64_t c = 0; c < width; ++c) {
      const double sum = mean[c];
      mean[c] = static_cast<double>(center[c]) + sum * share;
      squares[c] = std::max(squares[c] - sum * (sum * share), 0.0);
    }
  });
  std::vector<double> mean(s.channels()), var(s.channels());
  parallel_for(0, s.channels(), 256, [&](int64_t begin, int64_t end) {
    join(s, parts, begin, end, mean.data(), var.data());
    // Recompute channels with infinities or a float32 overflow: rare, so not worth a test in the loops.
    for (int64_t c = begin; c < end && s.count(); ++c)
      if (!std::isfinite(mean[c]) || !std::isfinite(var[c])) moments_of_channel(px, s, c, &mean[c], &var[c]);
  });
  return {vector_of<Acc>(mean, x), vector_of<Acc>(var, x)};
}

// Pointers of the gradient, and the per-channel vectors that they point into
template <typename T, typename Acc>
struct Source {
  explicit Source(const BnGradient& q) : affine(scale_shift<Acc>(q.bn, std::nullopt, q.x.size(1))) {
    const int64_t channels = q.x.size(1);
    mean = per_channel<Acc>(q.bn.mean, channels, Acc(0));
    mask = q.out ? Mask::kOut : q.relu ? Mask::kRecompute : Mask::kNone;
    grad = data<T>(q.grad);
    x = data<T>(q.x);
    out = q.out ? data<T>(*q.out) : nullptr;
  }
  // Pointers advanced to element `at` and to `channel`
  Masked<T, Acc> from(int64_t at, int64_t channel) const {
    return {grad + at,
            x + at,
            out ? out + at : nullptr,
            affine.scale.data() + channel,
            affine.shift.data() + channel,
            mean.data() + channel,
            mask,
            masked_grad ? masked_grad + at : nullptr};
  }
  ScaleShift<Acc> affine;
  std::vector<Acc> mean;
  Mask mask;
  const T *grad, *x, *out;
  T* masked_grad = nullptr;
};

std::vector<double> inverse_deviations(const BatchNorm& bn, int64_t channels) {
  std::vector<double> v = per_channel<double>(bn.var, channels, 1);
  for (double& d : v) d = 1 / std::sqrt(d + bn.eps);
  return v;
}

}  // namespace

std::tuple<Tensor, Tensor> batch_moments(const Tensor& x, bool channels_last) {
  return dispatch(scalar_type_of(x), [&](auto zero) {
    using T = decltype(zero);
    return moments<T, typename AccType<T>::type>(x, Segments(x, channels_last));
  });
}

std::tuple<Tensor, Tensor> gradient_sums(const BnGradient& q, const OptTensor& masked_grad) {
  return dispatch(scalar_type_of(q.x), [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename AccType<T>::type;
    const Segments s(q.x, q.channels_last);
    Source<T, Acc> source(q);
    if (masked_grad) {
      source.mask = Mask::kOutStored;
      source.masked_grad = static_cast<T*>(masked_grad->mutable_data_ptr());
    }
    const BnKernels<T, Acc>& k = bn_kernels<T, Acc>();
    Partials parts(s);
    s.for_each([&](int64_t segment, int64_t channel, int64_t width) {
      s.for_each_block(segment, channel, width, [&](int64_t at, Block block) {
        k.sum_gradient(source.from(at, channel), block, parts.first(segment) + channel,
                       parts.second(segment) + channel);
      });
    });
    std::vector<double> sum(s.channels()), products(s.channels());
    const std::vector<double> inverse = inverse_deviations(q.bn, s.channels());
    for (int64_t i = 0; i < s.count(); ++i)
      for (int64_t c = 0; c < s.channels(); ++c) {
        sum[c] += parts.first(i)[c];
        products[c] += parts.second(i)[c];
      }
    for (int64_t c = 0; c < s.channels() && s.count(); ++c) products[c] *= inverse[c];
    return std::make_tuple(vector_of<Acc>(sum, q.x), vector_of<Acc>(products, q.x));
  });
}

void gradient_into(const Tensor& to, const BnGradient& q, const OptTensor& sum_g, const OptTensor& sum_g_xhat,
                   double count) {
  if (q.x.numel() == 0) return;
  dispatch(scalar_type_of(q.x), [&](auto zero) {
    using T = decltype(zero);
    using Acc = typename AccType<T>::type;
    const int64_t channels = q.x.size(1);
    const Source<T, Acc> source(q);
    const BnKernels<T, Acc>& k = bn_kernels<T, Acc>();
    // a * (g - c - b * (x - mean)), where a is the BatchNorm scale. a stays outside the parentheses, as in torch: with
    // an infinite scale, multiplying it in would subtract infinities.
    const std::vector<Acc>& a = source.affine.scale;
    std::vector<Acc> b, c;
    if (sum_g) {
      b = per_channel<Acc>(sum_g_xhat, channels, Acc(0));
      c = per_channel<Acc>(sum_g, channels, Acc(0));
      const std::vector<double> inverse = inverse_deviations(q.bn, channels);
      for (int64_t i = 0; i < channels; ++i) {
        b[i] = static_cast<Acc>(inverse[i] * b[i] / count);
        c[i] = static_cast<Acc>(c[i] / count);
      }
    }
    T* pto = static_cast<T*>(to.mutable_data_ptr());
    for_each_block(q.x, q.channels_last, [&](int64_t at, int64_t channel, Block block) {
      k.apply_gradient(pto + at, source.from(at, channel), a.data() + channel, sum_g ? b.data() + channel : nullptr,
                       sum_g ? c.data() + channel : nullptr, block);
    });
  });
}

}  // namespace resnet_fused::cpu
