#include "cpu/plan.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <algorithm>
#include <limits>

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
  const Isa isa = isa_of(q.element, cpu);
  const int64_t size = isa == Isa::kAvx512Bf16 || isa == Isa::kAmx ? 2 : 4;
  if (const double bytes = slab_bytes(q, size); bytes > kMost) return says("a task's padded input takes ", bytes);
  if (q.pool_r * q.pool_s > 255)
    return "the pooling window is " + times(q.pool_r, q.pool_s) + ", more than 255 elements";
  const double ring = 4.0 * static_cast<double>(q.pool_r) * static_cast<double>(q.ow * q.k);
  return ring > kMost ? says("what a task pools takes ", ring) : "";
}

std::string no_onednn(const ConvShape& q, const CpuFeatures& cpu) {
  if (!cpu.onednn) return "this torch was built without oneDNN's fused convolution";
  if (q.element != Element::kFloat32 && q.element != Element::kBFloat16) return "float32 and bfloat16 only";
  if (q.element == Element::kBFloat16 && !cpu.onednn_bf16)
    return without(cpu, "AVX-512 and no AVX-NE-CONVERT, without which torch runs no oneDNN in bfloat16");
  if (q.n * q.oh * q.ow == 0) return "the output is empty";
  // oneDNN 3.12 crashes on outputs whose whole window is padding
  if (q.pad_h > q.dil_h * (q.r - 1) || q.pad_w > q.dil_w * (q.s - 1))
    return "a padding of " + times(q.pad_h, q.pad_w) + " is wider than the kernel reaches";
  if ((q.pad_h && q.dil_h > q.h) || (q.pad_w && q.dil_w > q.w))
    return "a dilation of " + times(q.dil_h, q.dil_w) + " steps over the whole image";
  if (onednn_is_wrong(q.element, q.ow, cpu)) return "the output is one pixel wide, with AMX";
  return past_32_bits(q);
}

// Why groups are left to oneDNN, where that multiplies as fast as our kernels; without AVX512-BF16 it takes twice as
// long in bfloat16. Measured on Zen 4, not on Intel.
std::string no_groups(const ConvShape& q, const CpuFeatures& cpu) {
  const std::string groups = std::to_string(q.groups) + " groups";
  if (q.pool_r) return "the convolution has " + groups + ", and a max-pool follows in the same kernel";
  const Isa isa = isa_of(q.element, cpu);
  const bool converts = q.element == Element::kFloat16 || (q.element == Element::kBFloat16 && isa < Isa::kAvx512Bf16);
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
  if (q.element == Element::kFloat64) return "float32, bfloat16 and float16 only";
  if (isa_of(q.element, cpu) == Isa::kNone) return without(cpu, "AVX2");
  if (q.element == Element::kBFloat16 && cpu.amx_bf16 && !cpu.amx_usable)
    return "this processor has AMX, which oneDNN uses for bfloat16 and the system does not grant to us";
  if (const std::string why = q.groups > 1 ? no_groups(q, cpu) : ""; !why.empty()) return why;
  if (q.r * q.s > 64) return "the kernel is " + times(q.r, q.s) + ", more than 64 taps";
  if (const std::string why = past_32_bits(q); !why.empty()) return why;
  ConvShape section = q;  // what a task copies: a group, or narrow groups of 16 channels
  if (q.groups > 1) section.c = std::max<int64_t>(q.c / q.groups, 16);
  return too_much_scratch(section, cpu);
}

std::string no_tiles_of_2(const ConvShape& q) {
  const int64_t tiles = q.n * ((q.oh + 1) / 2) * ((q.ow + 1) / 2);
  // with fewer tiles, reading the transformed weights (16/9 of the size) costs more than it saves (Zen 4, Zen 5)
  constexpr int64_t kLeastTiles = 28;
  if (tiles >= kLeastTiles) return "";
  return "only " + std::to_string(tiles) + " tiles of 2x2 outputs, fewer than " + std::to_string(kLeastTiles);
}

// A pixel, partial tiles counted as full, costs a part of the direct form's; loading the fp32 transformed weights costs
// as much as some pixels. Measured on Zen 4 (AVX512-BF16, which doubles the direct form's rate; 8 times its weights)
// and Zen 5 (conversion to fp32; 4 times its weights), not on Intel.
std::string no_tiles_of_4(const ConvShape& q, const CpuFeatures& cpu) {
  const int64_t pixels = q.n * q.oh * q.ow, filled = q.n * ((q.oh + 3) / 4 * 4) * ((q.ow + 3) / 4 * 4);
  const bool converts = isa_of(q.element, cpu) != Isa::kAvx512Bf16;
  const int64_t tenths = converts ? 4 : 7, pixels_of_weights = converts ? 80 : 300;
  if (10 * pixels - tenths * filled >= 10 * pixels_of_weights) return "";
  return std::to_string(pixels) + " pixels, " + std::to_string(filled) +
         " in whole tiles of 4x4: too few for what transformed weights cost";
}

std::string no_winograd(const ConvShape& q, const CpuFeatures& cpu) {
  if (const std::string why = no_direct(q, cpu); !why.empty()) return why;
  if (q.groups != 1) return "the convolution has " + std::to_string(q.groups) + " groups";
  if (q.r != 3 || q.s != 3) return "the kernel is " + times(q.r, q.s) + ", not 3x3";
  if (q.stride_h != 1 || q.stride_w != 1) return "the stride is " + times(q.stride_h, q.stride_w);
  if (q.dil_h != 1 || q.dil_w != 1) return "the dilation is " + times(q.dil_h, q.dil_w);
  if (q.pool_r) return "a max-pool follows in the same kernel";
  if (isa_of(q.element, cpu) == Isa::kAmx) return "AMX multiplies faster than AVX-512 transforms";
  if (q.c % 16 || q.c < 32 || q.k % 16 || q.k < 32)
    return std::to_string(q.c) + " -> " + std::to_string(q.k) + " channels; multiples of 16 from 32 up expected";
  return q.element == Element::kFloat32 ? no_tiles_of_2(q) : no_tiles_of_4(q, cpu);
}

constexpr Candidate kCandidates[] = {
    {Engine::kWinograd, "winograd", no_winograd},
    {Engine::kDirect, "direct", no_direct},
    {Engine::kOneDnn, "onednn", no_onednn},
    {Engine::kComposed, "composed", [](const ConvShape&, const CpuFeatures&) { return std::string(); }},
};

// RESNET_FUSED_CPU_ENGINE=NAME skips the engines preferred to NAME: for tests and comparisons.
size_t first_candidate() {
  static_assert(std::size(kCandidates) == 4);
  return index_from_environment("RESNET_FUSED_CPU_ENGINE",
                                {kCandidates[0].name, kCandidates[1].name, kCandidates[2].name, kCandidates[3].name})
      .value_or(0);
}

const char* name_of(Engine engine) {
  for (const Candidate& c : kCandidates)
    if (c.engine == engine) return c.name;
  return "?";
}

std::string sentence_of(Engine engine, Isa isa) {
  constexpr const char* kSets[] = {"no", "AVX2", "AVX-512", "AVX512-BF16", "AMX"};
  const std::string set = kSets[static_cast<int>(isa)];
  switch (engine) {
    case Engine::kWinograd:
      return "Winograd F(2x2, 3x3), in 16-bit types F(4x4, 3x3), " + set + ", epilogue in the output transform";
    case Engine::kDirect:
      return "direct convolution, " + set + (isa == Isa::kAmx ? ", epilogue from L1" : ", epilogue in registers");
    case Engine::kOneDnn:
      return "oneDNN convolution; BatchNorm, add and ReLU fused, or one pass where the weight is larger than the "
             "output";
    case Engine::kComposed:
      break;
  }
  return "torch's convolution, then one pass for BatchNorm, add and ReLU";
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

Isa isa_of(Element element, const CpuFeatures& cpu) {
  if (element == Element::kFloat64) return Isa::kNone;
  if (element == Element::kBFloat16 && cpu.amx_usable) return Isa::kAmx;
  if (element == Element::kBFloat16 && cpu.avx512_bf16) return Isa::kAvx512Bf16;
  return cpu.avx512 ? Isa::kAvx512 : cpu.avx2 ? Isa::kAvx2 : Isa::kNone;
}

bool own_kernels_allowed() { return kCandidates[first_candidate()].engine <= Engine::kDirect; }

Plan make_plan(const ConvShape& shape, const CpuFeatures& cpu) {
  const Candidate* first = kCandidates + first_candidate();
  Isa isa = isa_of(shape.element, cpu);
  if (isa == Isa::kAmx && shape.groups > 1) isa = Isa::kAvx512Bf16;  // there is no AMX kernel for groups
  Plan plan{Engine::kComposed, isa, {}};
  for (const Candidate& c : kCandidates) {
    const std::string why =
        &c < first ? std::string("RESNET_FUSED_CPU_ENGINE is ") + first->name : c.reason(shape, cpu);
    if (why.empty()) {
      plan.engine = c.engine;
      return plan;
    }
    plan.rejected.push_back(std::string(c.name) + ": " + why);
  }
  return plan;
}

std::string to_string(const Plan& plan) {
  std::string s = std::string(name_of(plan.engine)) + ": " + sentence_of(plan.engine, plan.isa);
  for (const std::string& why : plan.rejected) s += "\n  not " + why;
  return s;
}

}  // namespace resnet_fused::cpu
