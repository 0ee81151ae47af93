// The inner loops of BatchNorm in training: sums over pixels, and the gradient that they give. Plain pointers: this
// header is what the instruction-set specific files share with the rest, and it includes no library.
//
// Elements are `pixels` rows of `channels`, dense: NHWC. One channel's plane of NCHW is the same thing with one
// channel.
#pragma once
#include <cstdint>

namespace resnet_fused::cpu {

// Where a ReLU lets the gradient through: wherever its input is not at most 0, which takes NaN in, as torch's does.
enum class Mask {
  kNone,      // there was no ReLU
  kOut,       // out, the ReLU's result, is at hand
  kRecompute  // x * scale + shift is what it read
};

template <typename T, typename Acc>
struct Masked {
  const T *grad, *x, *out;   // out with kOut only
  const Acc *scale, *shift;  // with kRecompute only
  Mask mask;
};

template <typename T, typename Acc>
struct TrainKernels {
  // About the mean of each channel: that of the given rows, rounded to a kGrid-th of their spread. Distances from a
  // number with more digits would round the same way over and over, and the error of their sum would grow with their
  // count. Exact where all rows are equal.
  void (*center)(const T* const* rows, int64_t count, int64_t channels, Acc* center);
  // Adds the sums of x - center and of its square, each channel's to its own.
  void (*sum_squares)(const T* x, const Acc* center, int64_t pixels, int64_t channels, double* sum, double* squares);
  // Adds the sums of g and of g * (x - mean).
  void (*sum_gradient)(const Masked<T, Acc>& g, const Acc* mean, int64_t pixels, int64_t channels, double* sum,
                       double* products);
  // to = a * g + b * (x - mean) + c; without b, a * g.
  void (*apply)(T* to, const Masked<T, Acc>& g, const Acc* mean, const Acc* a, const Acc* b, const Acc* c,
                int64_t pixels, int64_t channels);
};

template <typename T, typename Acc>
const TrainKernels<T, Acc>& portable_train_kernels();

struct BFloat16;
namespace avx512 {
extern const TrainKernels<float, float> train_kernels_fp32;
extern const TrainKernels<BFloat16, float> train_kernels_bf16;
}  // namespace avx512

// Sums leave float32 for float64 every kRows pixels: a long running sum in float32 loses what it has no digits for.
constexpr int64_t kRows = 32;

// 1 / kGrid of the spread as the distance of neighbours: v + spread * round_at<Acc> has no finer digits.
constexpr int64_t kGrid = 4096;
template <typename Acc>
constexpr Acc round_at = static_cast<Acc>((int64_t{1} << (sizeof(Acc) == 4 ? 24 : 53)) / kGrid);

}  // namespace resnet_fused::cpu
