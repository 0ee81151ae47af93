// Portable loops for pool_kernels.h, vectorised over channels by the compiler for each instruction set.
#include "cpu/pool_kernels.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "cpu/isa.h"
#include "cpu/scalar.h"

namespace resnet_fused::cpu {

namespace {

#define INLINE inline __attribute__((always_inline))

constexpr int64_t kSpan = 64;  // channels at a time; the state carried over the window stays in cache

// Indices as wide as the compared values, so one mask serves both.
template <typename Acc>
using Index = std::conditional_t<sizeof(Acc) == 8, int64_t, int32_t>;

// Pools one window for `width` channels from c on. (h, w) is the window's first pixel, which may lie outside the image.
template <typename T, typename Acc>
INLINE void pool_window(T* out, uint8_t* argmax, const T* image, const Acc* scale, const Acc* shift, const PoolShape& s,
                        int64_t h, int64_t w, int64_t c, int64_t width) {
  Acc most[kSpan];
  Index<Acc> tap[kSpan];
  std::fill(most, most + width, -std::numeric_limits<Acc>::infinity());
  std::fill(tap, tap + width, Index<Acc>(kNoArgmax));
  for (int64_t i = std::max<int64_t>(0, -h); i < std::min(s.kernel_h, s.h - h); ++i)
    for (int64_t j = std::max<int64_t>(0, -w); j < std::min(s.kernel_w, s.w - w); ++j) {
      const T* x = image + ((h + i) * s.w + w + j) * s.channels + c;
      const Index<Acc> id = static_cast<Index<Acc>>(i * s.kernel_w + j);
      for (int64_t k = 0; k < width; ++k) {
        const Acc v = load(x[k]) * scale[c + k] + shift[c + k];
        const bool takes = v > most[k] || v != v;  // the first maximum wins; NaN wins over everything, as in torch
        most[k] = takes ? v : most[k];
        tap[k] = takes ? id : tap[k];
      }
    }
  for (int64_t k = 0; k < width; ++k) {
    store(out + c + k, most[k] < Acc(0) ? Acc(0) : most[k]);
    argmax[c + k] = static_cast<uint8_t>(most[k] <= static_cast<Acc>(vanishes<T>) ? Index<Acc>(kNoArgmax) : tap[k]);
  }
}

template <typename T, typename Acc>
INLINE void forward_body(T* out, uint8_t* argmax, const T* x, const Acc* scale, const Acc* shift, const PoolShape& s,
                         int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* image = x + row / s.oh * s.h * s.w * s.channels;
    for (int64_t q = 0; q < s.ow; ++q) {
      const int64_t to = (row * s.ow + q) * s.channels;
      for (int64_t c = 0; c < s.channels; c += kSpan)
        pool_window(out + to, argmax + to, image, scale, shift, s, row % s.oh * s.stride_h - s.pad_h,
                    q * s.stride_w - s.pad_w, c, std::min(kSpan, s.channels - c));
    }
  }
}

// The windows that contain position `at`: outputs [first, last].
INLINE void windows_of(int64_t at, int64_t kernel, int64_t stride, int64_t out, int64_t* first, int64_t* last) {
  *first = std::max<int64_t>(0, (at - kernel + stride) / stride);  // ceil((at - kernel + 1) / stride), at least 0
  *last = std::min(out - 1, at / stride);
}

template <typename T, typename Acc>
INLINE void backward_body(T* to, const T* grad, const uint8_t* argmax, const PoolShape& s, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / s.h * s.oh, h = row % s.h + s.pad_h;
    int64_t first_p, last_p;
    windows_of(h, s.kernel_h, s.stride_h, s.oh, &first_p, &last_p);
    for (int64_t j = 0; j < s.w; ++j) {
      const int64_t w = j + s.pad_w;
      int64_t first_q, last_q;
      windows_of(w, s.kernel_w, s.stride_w, s.ow, &first_q, &last_q);
      for (int64_t c = 0; c < s.channels; c += kSpan) {
        const int64_t width = std::min(kSpan, s.channels - c);
        Acc sum[kSpan];
        std::fill(sum, sum + width, Acc(0));
        for (int64_t p = first_p; p <= last_p; ++p)
          for (int64_t q = first_q; q <= last_q; ++q) {
            const int64_t from = ((image + p) * s.ow + q) * s.channels + c;
            const T* g = grad + from;
            const uint8_t* tap = argmax + from;
            const uint8_t id = static_cast<uint8_t>((h - p * s.stride_h) * s.kernel_w + w - q * s.stride_w);
            for (int64_t k = 0; k < width; ++k) sum[k] += tap[k] == id ? load(g[k]) : Acc(0);
          }
        T* at = to + (row * s.w + j) * s.channels + c;
        for (int64_t k = 0; k < width; ++k) store(at + k, sum[k]);
      }
    }
  }
}

// target_clones does not work on templates: one set of functions per storage type.
#define DEFINE_KERNELS(T, Acc)                                                                            \
  FOR_EVERY_ISA void forward(T* out, uint8_t* argmax, const T* x, const Acc* scale, const Acc* shift,     \
                             const PoolShape& shape, int64_t begin, int64_t end) {                        \
    forward_body(out, argmax, x, scale, shift, shape, begin, end);                                        \
  }                                                                                                       \
  FOR_EVERY_ISA void backward_of_##T(T* to, const T* grad, const uint8_t* argmax, const PoolShape& shape, \
                                     int64_t begin, int64_t end) {                                        \
    backward_body<T, Acc>(to, grad, argmax, shape, begin, end);                                           \
  }                                                                                                       \
  const PoolKernels<T, Acc>& kernels_of(T) {                                                              \
    static const PoolKernels<T, Acc> kernels{forward, backward_of_##T};                                   \
    return kernels;                                                                                       \
  }
DEFINE_KERNELS(float, float)
DEFINE_KERNELS(double, double)
DEFINE_KERNELS(_Float16, float)
DEFINE_KERNELS(BFloat16, float)
#undef DEFINE_KERNELS
#undef INLINE

}  // namespace

template <typename T, typename Acc>
const PoolKernels<T, Acc>& pool_kernels() {
  return kernels_of(T{});
}

template const PoolKernels<float, float>& pool_kernels();
template const PoolKernels<double, double>& pool_kernels();
template const PoolKernels<_Float16, float>& pool_kernels();
template const PoolKernels<BFloat16, float>& pool_kernels();

}  // namespace resnet_fused::cpu
