// Selects the engine of a convolution, or of one of its gradients, on this processor and gives the reasons against the
// others. Pure: shapes and processor features in, a plan out. Needs neither torch nor memory, so it can be printed and
// tested without running anything.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.h"

namespace resnet_fused::cpu {

enum class Engine { kWinograd, kDirect, kOneDnn, kComposed };
// Inference may keep a packed weight and fuses BatchNorm; the others pack for one call.
enum class Purpose { kInference, kForward, kInputGradient, kWeightGradient };
enum class Isa { kNone, kAvx2, kAvx512, kAvx512Bf16, kAmx };  // of our own convolutions

struct CpuFeatures {
  bool avx2 = false;         // with FMA and F16C
  bool avx512 = false;       // F, BW, VL, DQ, and avx2
  bool avx512_bf16 = false;  // VDPBF16PS
  bool amx_bf16 = false;     // tile registers
  bool amx_usable = false;   // by our kernels: permitted by the system, checked (amx/available.h); and avx512_bf16
  bool onednn = false;       // torch was built with it
  bool onednn_bf16 = false;  // and runs bfloat16 with it on this processor
  bool onednn_amx = false;   // and multiplies tiles in it, which no variable of ours disables
  bool capped = false;       // RESNET_FUSED_CPU_ISA disabled some of these
};

// A forward convolution, whatever is computed of it.
struct ConvShape {
  int64_t n, c, h, w, k, r, s, oh, ow;
  int64_t stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups;
  Dtype dtype;
  Purpose purpose = Purpose::kInference;
  bool x_nhwc = true, grad_nhwc = true;               // in memory: x, and the output's gradient
  int64_t pool_r = 0, pool_s = 0, pool_stride_h = 1;  // max-pool fused into the same kernel; 0: none
};

struct Rejected {
  const char* engine;
  std::string reason;
};

struct Plan {
  Engine engine;
  Isa isa;  // of the winograd and direct engines
  Purpose purpose;
  bool in_float32;                 // training: torch's convolution gets float32, if it runs
  bool flips;                      // input gradient: torch also computes it as a convolution, if it runs
  std::vector<Rejected> rejected;  // in order of preference
};

// The convolution that computes the input gradient: of the output's gradient with the flipped filter, with padding =
// filter extent - padding (Dumoulin and Visin 2016, arXiv:1603.07285, section 4.3). Its own inverse.
ConvShape flipped(const ConvShape& forward);

// oneDNN 3.12 reads uninitialised memory if it multiplies tiles and a bfloat16 output is one pixel wide.
inline bool onednn_is_wrong(Dtype dtype, int64_t output_width, const CpuFeatures& cpu) {
  return cpu.onednn_amx && dtype == Dtype::kBFloat16 && output_width == 1;
}

// Features of this processor, capped by RESNET_FUSED_CPU_ISA.
CpuFeatures cpu_features();
// The instruction set of our convolutions of these elements on this processor.
Isa isa_of(Dtype dtype, const CpuFeatures& cpu);
// Whether RESNET_FUSED_CPU_ENGINE allows our own kernels.
bool own_kernels_allowed();
Plan make_plan(const ConvShape& shape, const CpuFeatures& cpu);
const char* name_of(Engine engine);
const char* name_of(Isa isa);
const char* name_of(Purpose purpose);
std::string to_string(const Plan& plan);

}  // namespace resnet_fused::cpu
