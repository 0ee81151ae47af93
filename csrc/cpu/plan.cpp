#include "cpu/plan.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "cpu/amx/available.h"
#include "cpu/environment.h"
#include "cpu/onednn.h"

namespace resnet_fused::cpu {

namespace {

struct Candidate {
  Engine engine;
  const char* name;
  std::string (*reason)(const ConvShape&, const CpuFeatures&);  // empty: it can run and is expected to win
};

std::string times(int64_t a, int64_t b) { return std::to_string(a) + "x" + std::to_string(b); }

std::string without(const CpuFeatures& cpu, const char* what) {
  return (cpu.capped ? "RESNET_FUSED_CPU_ISA leaves no " : "this processor has no ") + std::string(what);
}

int64_t padded_h(const ConvShape& q) { return q.h + 2 * q.pad_h; }
int64_t padded_w(const ConvShape& q) { return q.w + 2 * q.pad_w; }

// Limits of 32-bit indices in the engines: coordinates in a padded image, and rounded-up channel counts.
std::string past_32_bits(const ConvShape& q) {
  constexpr int64_t kMostPlaces = std::numeric_limits<int32_t>::max(), kMostChannels = 1 << 24;
  if (std::max(padded_h(q), padded_w(q)) > kMostPlaces)
    return "the padded image is " + times(padded_h(q), padded_w(q)) + ", past coordinates of 32 bits";
  if (std::max(q.c, q.k) > kMostChannels)
    return std::to_string(q.c) + " -> " + std::to_string(q.k) + " channels, more than " + std::to_string(kMostChannels);
  return "";
}

// Upper bound in bytes on the padded input slab of a direct convolution task (direct_kernel.h), whose elements take
// `size` bytes. double, because the result may exceed 64 bits.
double slab_bytes(const ConvShape& q, int64_t size) {
  constexpr int64_t kTaskBytes = 512 << 10, kMostMoreChannels = 64;  // kSlabBytes; whole steps, and against aliasing
  const int64_t row = std::max<int64_t>(1, q.w * q.c * size);
  const int64_t units = std::max<int64_t>(1, kTaskBytes / row / q.stride_h / q.pool_stride_h);
  const double rows = static_cast<double>(units - 1) * static_cast<double>(q.pool_stride_h) +
                      static_cast<double>(std::max<int64_t>(1, q.pool_r));  // convolution output rows
  const double inputs = (rows - 1) * static_cast<double>(q.stride_h) + static_cast<double>(q.dil_h * (q.r - 1) + 1);
  const double width = static_cast<double>(std::max(padded_w(q), q.ow * q.s));  // or one patch per output
  return std::min(inputs, static_cast<double>(padded_h(q))) * width * static_cast<double>(q.c + kMostMoreChannels) *
         static_cast<double>(size);
}

std::string too_much_scratch(const ConvShape& q, const CpuFeatures& cpu) {
  constexpr double kMost = 64 << 20;  // bytes kept per thread
  const auto says = [](const char* what, double bytes) {
    return std::string(what) + (bytes < 1e15 ? std::to_string(static_cast<int64_t>(bytes)) + " bytes" : "petabytes") +
           ", more than 67108864";
  };
  const Isa isa = isa_of(q.dtype, cpu);
  const int64_t size = isa == Isa::kAvx512Bf16 || isa == Isa::kAmx ? 2 : 4;
  if (const double bytes = slab_bytes(q, size); bytes > kMost) return says("a task's padded input takes ", bytes);
  if (q.pool_r * q.pool_s > 255)
    return "the pooling window is " + times(q.pool_r, q.pool_s) + ", more than 255 elements";
  const double ring = 4.0 * static_cast<double>(q.pool_r) * static_cast<double>(q.ow * q.k);
  return ring > kMost ? says("what a task pools takes ", ring) : "";
}

std::string no_onednn(const ConvShape& q, const CpuFeatures& cpu) {
  if (!cpu.onednn) return "this torch was built without oneDNN's fused convolution";
  if (q.dtype != Dtype::kFloat32 && q.dtype != Dtype::kBFloat16) return "float32 and bfloat16 only";
  if (q.dtype == Dtype::kBFloat16 && !cpu.onednn_bf16)
    return without(cpu, "AVX-512 and no AVX-NE-CONVERT, without which torch runs no oneDNN in bfloat16");
  if (q.n * q.oh * q.ow == 0) return "the output is empty";
  // oneDNN 3.12 crashes on outputs whose whole window is padding
  if (q.pad_h > q.dil_h * (q.r - 1) || q.pad_w > q.dil_w * (q.s - 1))
    return "a padding of " + times(q.pad_h, q.pad_w) + " is wider than the kernel reaches";
  if ((q.pad_h && q.dil_h > q.h) || (q.pad_w && q.dil_w > q.w))
    return "a dilation of " + times(q.dil_h, q.dil_w) + " steps over the whole image";
  if (onednn_is_wrong(q.dtype, q.ow, cpu)) return "the output is one pixel wide, with AMX";
  if (q.purpose == Purpose::kWeightGradient) return "it computes no gradient of a weight";
  return past_32_bits(q);
}

// Why groups are left to oneDNN, where that multiplies as fast as our kernels; without AVX512-BF16 it takes twice as
// long in bfloat16. Measured on Zen 4, not on Intel.
std::string no_groups(const ConvShape& q, const CpuFeatures& cpu) {
  const std::string groups = std::to_string(q.groups) + " groups";
  if (q.pool_r) return "the convolution has " + groups + ", and a max-pool follows in the same kernel";
  const Isa isa = isa_of(q.dtype, cpu);
  const bool converts = q.dtype == Dtype::kFloat16 || (q.dtype == Dtype::kBFloat16 && isa < Isa::kAvx512Bf16);
  if (converts || !no_onednn(q, cpu).empty()) return "";
  if (isa == Isa::kAmx) return "the convolution has " + groups + ", for which we have no AMX kernel";
  const int64_t lanes = isa == Isa::kAvx2 ? 8 : 16, c = q.c / q.groups, k = q.k / q.groups;
  if (c == k && k > 1 && k < lanes && lanes % k == 0) return "";  // share a register: grouped_tile.h
  const std::string widths = groups + " of " + std::to_string(c) + " -> " + std::to_string(k) + " channels";
  const int64_t filled = (k + lanes - 1) / lanes * lanes;
  if (8 * k < 5 * filled) return widths + ", which leave more than 3/8 of the " + std::to_string(lanes) + " lanes idle";
  if (c != k && c < lanes) return widths + ": too few to read for a register of " + std::to_string(lanes);
  if (q.r * q.s == 1 && isa == Isa::kAvx2) return groups + " with a 1x1 kernel: oneDNN is faster with AVX2";
  return "";
}

std::string no_direct(const ConvShape& q, const CpuFeatures& cpu) {
  if (q.dtype == Dtype::kFloat64) return "float32, bfloat16 and float16 only";
  if (isa_of(q.dtype, cpu) == Isa::kNone) return without(cpu, "AVX2");
  if (q.dtype == Dtype::kBFloat16 && cpu.amx_bf16 && !cpu.amx_usable)
    return "this processor has AMX, which oneDNN uses for bfloat16 and the system does not grant to us";
  if (const std::string why = q.groups > 1 ? no_groups(q, cpu) : ""; !why.empty()) return why;
  if (q.r * q.s > 64) return "the kernel is " + times(q.r, q.s) + ", more than 64 taps";
  if (const std::string why = past_32_bits(q); !why.empty()) return why;
  ConvShape section = q;  // what a task copies: a group, or narrow groups of 16 channels
  if (q.groups > 1) section.c = std::max<int64_t>(q.c / q.groups, 16);
  return too_much_scratch(section, cpu);
}

// The instruction set of our own kernels; kNone if there are none for these elements.
Isa own_isa(Dtype dtype, const CpuFeatures& cpu) {
  const bool withheld = dtype == Dtype::kBFloat16 && cpu.amx_bf16 && !cpu.amx_usable;
  return withheld ? Isa::kNone : isa_of(dtype, cpu);
}

bool has_16_bits(Dtype dtype) { return dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16; }

// What Winograd's algorithm costs, in the time that the alternative takes for a pixel.
struct WinogradCost {
  int64_t tile;     // its outputs are tile x tile
  int64_t percent;  // time of a pixel, those that fill up partial tiles included
  int64_t pixels;   // time of the transformed weights
};
// Inference, against our direct kernel: loading the transformed weights, which are packed. Measured on Zen 4
// (AVX512-BF16, which doubles the direct kernel's rate; 8 times its weights) and on Zen 5 (conversion to fp32; 4 times
// its weights), not on Intel.
constexpr WinogradCost kAgainstDirectInBf16{4, 70, 300}, kAgainstDirectInFp32{4, 40, 80};
// In fp32 with fewer tiles of 2x2, reading the transformed weights (16/9 of the size) costs more than it saves (Zen 4,
// Zen 5).
constexpr int64_t kLeastTiles = 28;
// Training in 16 bits, against torch's convolution: the weights are also transformed in every call, so less remains to
// gain. The rows above have to hold too.
constexpr WinogradCost kAgainstTorchIn16Bits{4, 75, 600};
// Its input gradient in fp32. On two cores of a Sapphire Rapids, with AVX-512 and capped to AVX2 (2026-11-29, 1024
// pixels and more), torch took 1.29 to 4.7 times our time where 218 pixels or more were saved, 0.91 to 1.87 times at 23
// to 51, 0.26 times below 0.
constexpr WinogradCost kAgainstTorchInFp32{2, 55, 100};

struct Image {
  int64_t h, w;
  int64_t pixels(const ConvShape& q) const { return q.n * h * w; }
  int64_t filled(const ConvShape& q, int64_t tile) const {
    return q.n * ((h + tile - 1) / tile * tile) * ((w + tile - 1) / tile * tile);
  }
};

bool pays(const WinogradCost& cost, const ConvShape& q, const Image& image) {
  return 100 * image.pixels(q) - cost.percent * image.filled(q, cost.tile) >= 100 * cost.pixels;
}

std::string does_not_pay(const WinogradCost& cost, const ConvShape& q, const Image& image) {
  return std::to_string(image.pixels(q)) + " pixels, " + std::to_string(image.filled(q, cost.tile)) +
         " in whole tiles of " + times(cost.tile, cost.tile) + ": too few for what transformed weights cost";
}

std::string no_tiles_of_2(const ConvShape& q) {
  const int64_t tiles = q.n * ((q.oh + 1) / 2) * ((q.ow + 1) / 2);
  if (tiles >= kLeastTiles) return "";
  return "only " + std::to_string(tiles) + " tiles of 2x2 outputs, fewer than " + std::to_string(kLeastTiles);
}

std::string no_tiles_of_4(const ConvShape& q, const CpuFeatures& cpu) {
  const bool converts = isa_of(q.dtype, cpu) != Isa::kAvx512Bf16;
  const WinogradCost& cost = converts ? kAgainstDirectInFp32 : kAgainstDirectInBf16;
  const Image out{q.oh, q.ow};
  return pays(cost, q, out) ? "" : does_not_pay(cost, q, out);
}

std::string no_winograd(const ConvShape& q, const CpuFeatures& cpu) {
  if (const std::string why = no_direct(q, cpu); !why.empty()) return why;
  if (q.groups != 1) return "the convolution has " + std::to_string(q.groups) + " groups";
  if (q.r != 3 || q.s != 3) return "the kernel is " + times(q.r, q.s) + ", not 3x3";
  if (q.stride_h != 1 || q.stride_w != 1) return "the stride is " + times(q.stride_h, q.stride_w);
  if (q.dil_h != 1 || q.dil_w != 1) return "the dilation is " + times(q.dil_h, q.dil_w);
  if (q.pool_r) return "a max-pool follows in the same kernel";
  if (isa_of(q.dtype, cpu) == Isa::kAmx) return "AMX multiplies faster than AVX-512 transforms";
  if (q.c % 16 || q.c < 32 || q.k % 16 || q.k < 32)
    return std::to_string(q.c) + " -> " + std::to_string(q.k) + " channels; multiples of 16 from 32 up expected";
  return q.dtype == Dtype::kFloat32 ? no_tiles_of_2(q) : no_tiles_of_4(q, cpu);
}

std::string no_direct_in_purpose(const ConvShape& q, const CpuFeatures& cpu) {
  if (const std::string why = no_direct(q, cpu); !why.empty() || q.purpose != Purpose::kWeightGradient) return why;
  return isa_of(q.dtype, cpu) == Isa::kAmx && q.groups == 1 ? "" : "its weight gradient is computed with AMX only";
}

constexpr Candidate kCandidates[] = {
    {Engine::kWinograd, "winograd", no_winograd},
    {Engine::kDirect, "direct", no_direct_in_purpose},
    {Engine::kOneDnn, "onednn", no_onednn},
    {Engine::kComposed, "composed", [](const ConvShape&, const CpuFeatures&) { return std::string(); }},
};

// Whether our kernels convert 16 bits to float32: no instruction multiplies them and sums in float32. torch's
// convolutions are then several times slower than in float32, with AVX512-FP16 too, where its weight gradients take
// hundreds of times as long (Sapphire Rapids, torch 2.13.0).
bool is_slow_in_torch(Dtype dtype, const CpuFeatures& cpu) {
  const Isa isa = own_isa(dtype, cpu);
  return has_16_bits(dtype) && (isa == Isa::kAvx2 || isa == Isa::kAvx512);
}

// Training, for each purpose: why torch's kernel is expected to be faster than any of ours, or empty. Weights change at
// every step, so packing them has to pay off within one call. q: the convolution that computes an input gradient.
std::string left_to_torch(const ConvShape& q, const CpuFeatures& cpu) {
  // Images have few input channels, over which oneDNN vectorises; our kernels do over output channels.
  constexpr int64_t kMostImageChannels = 4;
  constexpr int64_t kLeastPixels = 1024;
  // torch allocates results of this size anew each time, and the page faults take as long as a 1x1 convolution. Ours
  // use pooled memory or huge pages (memory.h).
  constexpr double kLeastPooledBytes = 16 << 20;
  const bool forward = q.purpose == Purpose::kForward, of_weight = q.purpose == Purpose::kWeightGradient;
  if (q.groups != 1)
    return "the convolution has " + std::to_string(q.groups) + " groups, for which training uses torch";

  // AMX is at least as fast as torch in any shape, packing included.
  const Isa isa = own_isa(q.dtype, cpu);
  const bool nhwc = of_weight && isa != Isa::kAmx ? q.grad_nhwc : q.x_nhwc;
  if (!nhwc) return "a tensor is not channels_last, and converting it takes too long";
  if (isa == Isa::kAmx) return "";

  const Image image = of_weight ? Image{q.oh, q.ow} : Image{q.h, q.w};
  if (image.pixels(q) < kLeastPixels)
    return "only " + std::to_string(image.pixels(q)) + " pixels, fewer than the " + std::to_string(kLeastPixels) +
           " for which packing the weight pays in one call";

  const bool fp32 = q.dtype == Dtype::kFloat32, fp32_or_bf16 = fp32 || q.dtype == Dtype::kBFloat16;
  if (!of_weight && is_slow_in_torch(q.dtype, cpu)) return "";
  if (forward && fp32_or_bf16 && q.c <= kMostImageChannels) return "";
  const Image unpadded{(q.h - 1) / q.stride_h + 1, (q.w - 1) / q.stride_w + 1};  // output of a 1x1 kernel
  const double bytes = static_cast<double>(unpadded.pixels(q)) * static_cast<double>(q.k) * (fp32 ? 4 : 2);
  if (!of_weight && fp32_or_bf16 && q.r * q.s == 1 && bytes >= kLeastPooledBytes) return "";

  const bool unit = q.stride_h == 1 && q.stride_w == 1 && q.dil_h == 1 && q.dil_w == 1;
  if (q.r == 3 && q.s == 3 && unit && fp32)
    return q.purpose != Purpose::kInputGradient || pays(kAgainstTorchInFp32, q, image)
               ? ""
               : does_not_pay(kAgainstTorchInFp32, q, image);
  const bool whole = q.c % 16 == 0 && q.c >= 32 && q.k % 16 == 0 && q.k >= 32;
  if (q.r == 3 && q.s == 3 && unit && has_16_bits(q.dtype) && whole && isa != Isa::kNone)
    return pays(kAgainstTorchIn16Bits, q, image) ? "" : does_not_pay(kAgainstTorchIn16Bits, q, image);

  // Our direct kernel is 1.0 to 2.4 times as fast as torch's on a Sapphire Rapids in all of ResNet's shapes, input
  // gradients too, packing included. With AVX2 it is not.
  if (!of_weight && fp32 && isa == Isa::kAvx512) return "";
  return "torch's is as fast, and packs no weight for it";
}

// With AMX, oneDNN's input gradient in bfloat16 copies the padded gradient in every thread: at this filter extent,
// dilation * (size - 1), up to 70 MB, at 60000 230 GB. From 6000 to 12000 it fails ("could not create a primitive").
// Common networks stay far below.
bool torchs_input_gradient_fails(const ConvShape& q) {
  constexpr int64_t kMostExtent = 1024;
  return has_16_bits(q.dtype) && std::max(q.dil_h * (q.r - 1), q.dil_w * (q.s - 1)) > kMostExtent;
}

// oneDNN 3.12 computes the weight gradient of depthwise convolutions in bfloat16 wrongly if their rows are dilated.
bool onednns_weight_gradient_is_wrong(const ConvShape& q) {
  return q.dtype == Dtype::kBFloat16 && q.groups > 1 && q.groups == q.c && q.groups == q.k && q.dil_h > 1;
}

// Why the input gradient is not a convolution that our kernels compute.
std::string no_flipped(const ConvShape& forward) {
  if (forward.groups != 1) return "the input gradient has " + std::to_string(forward.groups) + " groups";
  if (forward.stride_h != 1 || forward.stride_w != 1)
    return "with a stride of " + times(forward.stride_h, forward.stride_w) + " the input gradient is no convolution";
  const ConvShape q = flipped(forward);
  if (q.pad_h >= 0 && q.pad_w >= 0) return "";
  return "a padding of " + times(forward.pad_h, forward.pad_w) + " is wider than the kernel reaches";
}

// RESNET_FUSED_CPU_ENGINE=NAME skips the engines preferred to NAME, and uses the others in training wherever they can
// run, even if torch is faster: for tests and comparisons.
std::optional<size_t> engine_from_environment() {
  static_assert(std::size(kCandidates) == 4);
  return index_from_environment("RESNET_FUSED_CPU_ENGINE",
                                {kCandidates[0].name, kCandidates[1].name, kCandidates[2].name, kCandidates[3].name});
}

std::string sentence_of(const Plan& plan) {
  const Isa isa = plan.isa;
  const std::string set = name_of(isa), with = plan.in_float32 ? ", in float32" : "";
  if (plan.purpose == Purpose::kWeightGradient && plan.engine <= Engine::kDirect)
    return (plan.engine == Engine::kDirect ? "a product of matrices for each tap, " : "transposed Winograd, ") + set +
           ", BatchNorm and ReLU as x is read";
  if (plan.engine == Engine::kComposed && plan.purpose > Purpose::kForward)
    return (plan.flips ? "torch's convolution with the flipped filter" : "torch's convolution_backward") + with;
  // Only inference's op has a BatchNorm, and only the forward ones a ReLU.
  const std::string pass = plan.purpose == Purpose::kInference ? "BatchNorm, add and ReLU"
                           : plan.purpose == Purpose::kForward ? "add and ReLU"
                                                               : "the add";
  switch (plan.engine) {
    case Engine::kWinograd:
      return "Winograd F(2x2, 3x3), in 16-bit types F(4x4, 3x3), " + set + ", epilogue in the output transform";
    case Engine::kDirect:
      return "direct convolution, " + set + (isa == Isa::kAmx ? ", epilogue from L1" : ", epilogue in registers");
    case Engine::kOneDnn:
      return "oneDNN convolution; " + pass + " fused, or one pass where the weight is larger than the output";
    case Engine::kComposed:
      break;
  }
  return "torch's convolution" + with + ", then one pass for " + pass;
}

#if defined(__x86_64__)
bool has_avx_ne_convert() {  // __builtin_cpu_supports has it only from gcc 13
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (d >> 5 & 1);
}
#endif

CpuFeatures features_of_this_processor() {
  CpuFeatures f;
  f.onednn = onednn_available();
#if defined(__x86_64__)
  f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  f.avx512 = f.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  f.avx512_bf16 = f.avx512 && __builtin_cpu_supports("avx512bf16");
  f.amx_bf16 = __builtin_cpu_supports("amx-bf16");
  f.amx_usable = f.amx_bf16 && f.avx512_bf16 && amx::available();
  f.onednn_amx = f.onednn && f.amx_bf16;
  f.onednn_bf16 = f.onednn && (f.avx512 || has_avx_ne_convert());
#else
  f.onednn_bf16 = f.onednn;
#endif
#if defined(RESNET_FUSED_EMULATED_AVX512)
  f.avx512 = f.avx512_bf16 = true;  // tests/avx512_on_avx2
#endif
#if defined(RESNET_FUSED_EMULATED_AMX)
  f.amx_bf16 = f.amx_usable = amx::available();  // tests/emulated_amx
#endif
  return f;
}

}  // namespace

CpuFeatures cpu_features() {
  static const CpuFeatures of_processor = features_of_this_processor();
  CpuFeatures f = of_processor;
  enum { kAvx2, kAvx512, kAvx512Bf16, kAmx };  // each includes the one before
  const size_t most =
      index_from_environment("RESNET_FUSED_CPU_ISA", {"avx2", "avx512", "avx512_bf16", "amx"}).value_or(kAmx);
  f.avx512 = f.avx512 && most >= kAvx512;
  f.avx512_bf16 = f.avx512_bf16 && most >= kAvx512Bf16;
  f.amx_bf16 = f.amx_bf16 && most >= kAmx;
  f.amx_usable = f.amx_usable && most >= kAmx;
  f.onednn_bf16 = f.onednn_bf16 && most >= kAvx512;
  f.capped = f.avx512 != of_processor.avx512 || f.avx512_bf16 != of_processor.avx512_bf16 ||
             f.amx_bf16 != of_processor.amx_bf16 || f.onednn_bf16 != of_processor.onednn_bf16;
  return f;
}

Isa isa_of(Dtype dtype, const CpuFeatures& cpu) {
  if (dtype == Dtype::kFloat64) return Isa::kNone;
  if (dtype == Dtype::kBFloat16 && cpu.amx_usable) return Isa::kAmx;
  if (dtype == Dtype::kBFloat16 && cpu.avx512_bf16) return Isa::kAvx512Bf16;
  return cpu.avx512 ? Isa::kAvx512 : cpu.avx2 ? Isa::kAvx2 : Isa::kNone;
}

bool own_kernels_allowed() { return kCandidates[engine_from_environment().value_or(0)].engine <= Engine::kDirect; }

ConvShape flipped(const ConvShape& forward) {
  ConvShape q = forward;
  std::swap(q.c, q.k), std::swap(q.h, q.oh), std::swap(q.w, q.ow);
  q.pad_h = q.dil_h * (q.r - 1) - q.pad_h, q.pad_w = q.dil_w * (q.s - 1) - q.pad_w;
  std::swap(q.x_nhwc, q.grad_nhwc);
  return q;
}

Plan make_plan(const ConvShape& shape, const CpuFeatures& cpu) {
  const std::optional<size_t> chosen = engine_from_environment();
  const Candidate* first = kCandidates + chosen.value_or(0);
  Isa isa = isa_of(shape.dtype, cpu);
  if (isa == Isa::kAmx && shape.groups > 1) isa = Isa::kAvx512Bf16;  // there is no AMX kernel for groups
  const bool of_input = shape.purpose == Purpose::kInputGradient;
  const ConvShape q = of_input ? flipped(shape) : shape;  // that runs
  const std::string impossible = of_input ? no_flipped(shape) : "";
  const bool flips = of_input && impossible.empty() && torchs_input_gradient_fails(shape);
  const bool compares = shape.purpose != Purpose::kInference && !chosen && !flips;
  const std::string slower = compares ? left_to_torch(q, cpu) : "";
  Plan plan{Engine::kComposed, isa, shape.purpose, false, flips, {}};
  for (const Candidate& c : kCandidates) {
    std::string why;
    if (&c < first)
      why = std::string("RESNET_FUSED_CPU_ENGINE is ") + first->name;
    else if (c.engine != Engine::kComposed)
      why = !impossible.empty() ? impossible : c.reason(q, cpu);
    if (why.empty() && c.engine != Engine::kComposed) why = slower;
    if (why.empty()) {
      plan.engine = c.engine;
      break;
    }
    plan.rejected.push_back({c.name, why});
  }
  if (shape.purpose != Purpose::kInference && !flips) {
    // Where the stride is wider than the image, oneDNN with AMX leaves taps of the weight gradient unwritten.
    const int64_t width = shape.purpose != Purpose::kForward && shape.stride_w > shape.w ? 1 : shape.ow;
    // Where ours gives up, torch's 16 bits have eager's Inf and NaN.
    const bool slow = first->engine <= Engine::kDirect && is_slow_in_torch(shape.dtype, cpu);
    // The two gradients have one plan for this, because one call of torch's computes both.
    const bool wrong = shape.purpose != Purpose::kForward && onednns_weight_gradient_is_wrong(shape);
    plan.in_float32 = (plan.engine == Engine::kComposed && slow) || wrong || onednn_is_wrong(shape.dtype, width, cpu);
  }
  return plan;
}

const char* name_of(Engine engine) {
  for (const Candidate& c : kCandidates)
    if (c.engine == engine) return c.name;
  return "?";
}

const char* name_of(Isa isa) {
  constexpr const char* kNames[] = {"no", "AVX2", "AVX-512", "AVX512-BF16", "AMX"};
  return kNames[static_cast<int>(isa)];
}

const char* name_of(Purpose purpose) {
  constexpr const char* kNames[] = {"inference", "forward", "input gradient", "weight gradient"};
  return kNames[static_cast<int>(purpose)];
}

std::string to_string(const Plan& plan) {
  std::string s = std::string(name_of(plan.engine)) + ": " + sentence_of(plan);
  for (const Rejected& each : plan.rejected) s += "\n  not " + std::string(each.engine) + ": " + each.reason;
  return s;
}

}  // namespace resnet_fused::cpu
