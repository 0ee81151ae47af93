// The inner loops of BatchNorm: applied, summed over pixels, and its gradient. Plain pointers: this header is what the
// instruction-set specific files share with the rest, and it includes no library.
#pragma once
#include <cstdint>

namespace resnet_fused::cpu {

struct BFloat16;

// Contiguous elements: `pixels` rows of `channels` (NHWC), or `channels` planes of `pixels` (NCHW).
struct Block {
  int64_t pixels, channels;
  bool planes;
};

// act(x * scale + shift [+ other [* other_scale + other_shift]]); other and other_scale may be null
template <typename T, typename Acc>
struct Sum {
  const T *x, *other;
  const Acc *scale, *shift, *other_scale, *other_shift;
  bool relu;
};

// Where the ReLU passes the gradient: where its input is not <= 0, so NaN passes, as in torch.
enum class Mask {
  kNone,      // no ReLU
  kOut,       // from out, the ReLU's output
  kOutKept,   // likewise, and sum_gradient stores g
  kRecompute  // x * scale + shift is what it read; open where that is stored as more than 0
};

// g: grad where the mask is open, else 0
template <typename T, typename Acc>
struct Masked {
  const T *grad, *x, *out;
  const Acc *scale, *shift, *mean;
  Mask mask;
  T* kept;
};

template <typename T, typename Acc>
struct BnKernels {
  void (*apply)(T* to, const Sum<T, Acc>& sum, Block block);
  // About the mean of each channel: that of the given rows, rounded to a kGrid-th of their spread. Distances from a
  // number with more digits would round the same way over and over, and the error of their sum would grow with their
  // count. Exact where all rows are equal.
  void (*center)(const T* const* rows, int64_t count, int64_t channels, Acc* center);
  // Adds the sums of x - center and of its square, each channel's to its own.
  void (*sum_squares)(const T* x, const Acc* center, Block block, double* sum, double* squares);
  // Adds the sums of g and of g * (x - mean).
  void (*sum_gradient)(const Masked<T, Acc>& g, Block block, double* sum, double* products);
  // to = a * (g - c - b * (x - mean)); without b, a * g.
  void (*apply_gradient)(T* to, const Masked<T, Acc>& g, const Acc* a, const Acc* b, const Acc* c, Block block);
};

namespace avx512 {
extern const BnKernels<float, float> bn_kernels_fp32;
extern const BnKernels<BFloat16, float> bn_kernels_bf16;
}  // namespace avx512

// The loops for this processor. T: storage type; Acc: arithmetic type.
template <typename T, typename Acc>
const BnKernels<T, Acc>& bn_kernels();

// Sums leave float32 for float64 every kRows pixels: a long running sum in float32 loses what it has no digits for.
constexpr int64_t kRows = 32;
// The same for a plane, whose sum is spread over kPlaneLanes lanes.
constexpr int64_t kPlaneRows = 64, kPlaneLanes = 64;
// Rows are read front to back, so many channels at a time at most: their sums are in L1.
constexpr int64_t kSpan = 1024;

// 1 / kGrid of the spread as the distance of neighbours: v + spread * round_at<Acc> has no finer digits.
constexpr int64_t kGrid = 4096;
template <typename Acc>
constexpr Acc round_at = static_cast<Acc>((int64_t{1} << (sizeof(Acc) == 4 ? 24 : 53)) / kGrid);

}  // namespace resnet_fused::cpu
