// Inner loops of BatchNorm: apply, per-channel sums, gradient. Plain pointers only: the ISA-specific files share this
// header with the rest, so it includes no library.
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

// Source of the ReLU mask. The gradient passes unless the ReLU's input is <= 0, so NaN passes, as in torch.
enum class Mask {
  kNone,       // no ReLU
  kOut,        // from out, the ReLU's output
  kOutStored,  // as kOut, and sum_gradient also stores g
  kRecompute   // recompute x * scale + shift; open where it rounds to more than 0 in the storage type
};

// g: grad where the mask is open, else 0
template <typename T, typename Acc>
struct Masked {
  const T *grad, *x, *out;
  const Acc *scale, *shift, *mean;
  Mask mask;
  T* masked_grad;
};

template <typename T, typename Acc>
struct BnKernels {
  void (*apply)(T* to, const Sum<T, Acc>& sum, Block block);
  // A provisional mean of each channel over the given rows, rounded to 1/kGrid of their spread. With more digits, the
  // distances from it would round in the same direction each time, and the error of their sum would grow with the
  // count. Exact if all rows are equal.
  void (*center)(const T* const* rows, int64_t count, int64_t channels, Acc* center);
  // Adds x - center and (x - center)^2 to the two sums of each channel.
  void (*sum_squares)(const T* x, const Acc* center, Block block, double* sum, double* squares);
  // Adds g and g * (x - mean) to the two sums of each channel.
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

// Sums move from float32 to float64 every kRows pixels: a long running sum in float32 drops low-order bits.
constexpr int64_t kRows = 32;
// The same for an NCHW plane, whose sum is spread over kPlaneLanes lanes.
constexpr int64_t kPlaneRows = 64, kPlaneLanes = 64;
// At most this many channels at a time: rows are read front to back and the sums stay in L1.
constexpr int64_t kSpan = 1024;

// spread / kGrid as the distance between neighbouring floats: v + spread * round_at<Acc> keeps no finer digits.
constexpr int64_t kGrid = 4096;
template <typename Acc>
constexpr Acc round_at = static_cast<Acc>((int64_t{1} << (sizeof(Acc) == 4 ? 24 : 53)) / kGrid);

}  // namespace resnet_fused::cpu
