#include <algorithm>
#include <limits>

#include "cuda/plan/planner.h"
#include "cuda/plan/words.h"

namespace resnet_fused::cuda {

namespace {

constexpr int32_t kOldestArch = 80;
constexpr int32_t kChannelMultiple = 8;

// Why the kernels cannot run one of the two convolutions.
std::string unsupported_shape(const ConvShape& q, const char* which) {
  if (q.c % kChannelMultiple || q.k % kChannelMultiple)
    return sentence(which, " has ", q.c, " -> ", q.k, " channels; multiples of ", kChannelMultiple, " expected");
  if (q.r > kConvFwdMostTaps || q.s > kConvFwdMostTaps)
    return sentence(which, "'s filter is ", q.r, "x", q.s, ", more than ", kConvFwdMostTaps, " taps a side");
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  const int64_t image = int64_t{q.n} * q.h * q.w;
  if (image > most / q.c || pixels(q) > most / q.k || weights(q, 1) > most)
    return sentence(which, " has ", image, "x", q.c, " inputs, ", pixels(q), "x", q.k, " outputs and ", weights(q, 1),
                    " weights; offsets of 32 bits reach ", most);
  if (q.h + 2 * int64_t{q.pad_h} > most || q.w + 2 * int64_t{q.pad_w} > most)
    return sentence(which, " pads ", q.h, "x", q.w, " by ", q.pad_h, "x", q.pad_w, ", past coordinates of 32 bits");
  // Tap offsets are relative to a pixel's first tap, which may lie in the padding.
  const double rows = static_cast<double>(int64_t{q.n} * q.h + 2 * int64_t{q.pad_h});
  if ((rows * q.w + 2.0 * q.pad_w) * q.c > static_cast<double>(most))
    return sentence(which, " pads ", q.h, "x", q.w, "x", q.c, " by ", q.pad_h, "x", q.pad_w,
                    ", past offsets of 32 bits");
  return "";
}

}  // namespace

std::string unsupported_conv(const Problem& p, const Device& device) {
  if (device.arch < kOldestArch)
    return sentence("the GPU is sm_", device.arch, "; the kernel needs at least sm_", kOldestArch);
  if (p.dtype == Dtype::kFloat64) return "the kernel takes float16, bfloat16 and float32";
  if (p.dtype == Dtype::kFloat32 && !p.allow_tf32)
    return "the kernel multiplies float32 as TF32, which torch's convolutions may not use here";
  if (p.groups != 1) return sentence("the convolution has ", p.groups, " groups");
  if (outputs(p.main) == 0) return "the output is empty";
  if (std::min(p.main.pad_h, p.main.pad_w) < 0) return "the forward convolution's padding exceeds its filter's reach";
  if (!p.aligned) return "a tensor is not 16-byte aligned";
  const std::string why = unsupported_shape(p.main, "the convolution");
  return why.empty() && has_projection(p.mode) ? unsupported_shape(p.projection, "the projection") : why;
}

std::string unsupported_by_wgmma(const Problem& p, const Device& device) {
  if (device.arch != kHopper) return sentence("the GPU is sm_", device.arch, "; wgmma and TMA need sm_90a");
  if (p.dtype != Dtype::kFloat16 && p.dtype != Dtype::kBFloat16) return "the kernel takes float16 and bfloat16";
  return "";
}

}  // namespace resnet_fused::cuda
