// wgmma: one warpgroup and one tile along K per block (sm_90a).
#include "cuda/device/ptx/wgmma.cuh"

#include <string>

#include "call.h"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/math.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/device/tile/smem_descriptor.cuh"
#include "cuda/device/types.h"
#include "cuda/runtime/launch.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

enum class Source { kShared, kRegisters };  // where operand a is

template <Dtype kDtypeOf, int kWidth, Source kSource, Swizzle kLayout>
struct Config {
  static constexpr Dtype kDtype = kDtypeOf;
  static constexpr int kN = kWidth;
  static constexpr Source kA = kSource;
  static constexpr Swizzle kSwizzle = kLayout;
  static constexpr int kRow = kSwizzle == Swizzle::kNone ? 64 : static_cast<int>(kSwizzle);  // bytes along K
  static constexpr int kSteps = kRow / 32;
  static constexpr int kABytes = 64 * kRow, kBBytes = kN * kRow;

  // Without a swizzle, core matrices of a are adjacent along K, and those of b are adjacent along rows.
  enum class Operand { kA, kB };
  __device__ __forceinline__ static uint64_t descriptor(Operand operand, uint32_t address, int step) {
    if constexpr (kSwizzle == Swizzle::kNone) {
      const uint32_t k_stride = operand == Operand::kA ? 128 : kN * 16;
      const uint32_t row_stride = operand == Operand::kA ? kRow * 8 : 128;
      return smem_descriptor<kSwizzle>(address + step * 2 * k_stride, k_stride, row_stride);
    } else {
      return smem_descriptor<kSwizzle>(address + step * 32);
    }
  }

  template <typename A>
  __device__ __forceinline__ static void multiply(float (&d)[kN / 2], const A& a, uint64_t b, bool accumulate) {
    if constexpr (kDtype == Dtype::kFloat16)
      ptx::wgmma_m64k16_f16<kN>(d, a, b, accumulate);
    else
      ptx::wgmma_m64k16_bf16<kN>(d, a, b, accumulate);
  }
};

// a, b: as stored in shared memory (a in registers: 4 words per thread and step); c, out: kN / 2 floats per thread.
template <typename C>
__global__ void __launch_bounds__(128, 1)
    wgmma_kernel(const char* a, const char* b, const char* c, char* out, uint32_t accumulate) {
  DYNAMIC_SMEM(smem);
  const uint32_t place_a = ptx::smem_address(smem), place_b = place_a + C::kABytes;
  uint32_t r[4];
  if constexpr (C::kA == Source::kShared) {
    for (uint32_t i = threadIdx.x * 16; i < C::kABytes; i += 128 * 16) {
      ptx::ld_global_v4(r, a + i);
      ptx::st_shared_v4(place_a + i, r);
    }
  }
  for (uint32_t i = threadIdx.x * 16; i < C::kBBytes; i += 128 * 16) {
    ptx::ld_global_v4(r, b + i);
    ptx::st_shared_v4(place_b + i, r);
  }
  ptx::fence_proxy_async();
  ptx::bar_sync_all();

  [[maybe_unused]] uint32_t fragment[C::kSteps][4];
  if constexpr (C::kA == Source::kRegisters) {
#pragma unroll
    for (int s = 0; s < C::kSteps; ++s) ptx::ld_global_v4(fragment[s], a + (s * 128 + threadIdx.x) * 16);
  }
  float d[C::kN / 2];
#pragma unroll
  for (int i = 0; i < C::kN / 2; i += 4) {
    ptx::ld_global_v4(r, c + threadIdx.x * (C::kN * 2) + i * 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) d[i + j] = ptx::mov_f32_b32(r[j]);
  }
  ptx::wgmma_fence();
#pragma unroll
  for (int s = 0; s < C::kSteps; ++s) {
    const uint64_t b_word = C::descriptor(C::Operand::kB, place_b, s);
    if constexpr (C::kA == Source::kRegisters)
      C::multiply(d, fragment[s], b_word, s > 0 || accumulate);
    else
      C::multiply(d, C::descriptor(C::Operand::kA, place_a, s), b_word, s > 0 || accumulate);
  }
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
#pragma unroll
  for (int i = 0; i < C::kN / 2; i += 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) r[j] = ptx::mov_b32_f32(d[i + j]);
    ptx::st_global_v4(out + threadIdx.x * (C::kN * 2) + i * 4, r);
  }
}

// buffers: a, b, c, out; numbers: accumulate
template <typename C>
void wgmma(const Call& c) {
  LAUNCH(wgmma_kernel<C>, 1, 128, C::kABytes + C::kBBytes, nullptr, static_cast<const char*>(c.in(0)),
         static_cast<const char*>(c.in(1)), static_cast<const char*>(c.in(2)), static_cast<char*>(c.out(3)),
         static_cast<uint32_t>(c.numbers[0]));
}

template <Dtype kDtype, Source kSource, Swizzle kSwizzle, int... kWidths>
bool add() {
  const std::string type = kDtype == Dtype::kFloat16 ? "f16" : "bf16";
  const std::string source = kSource == Source::kShared ? "shared" : "registers";
  const auto name = [&](int n) {
    return "wgmma_" + type + "_n" + std::to_string(n) + "_" + source + "_" + std::to_string(static_cast<int>(kSwizzle));
  };
  (Primitive(name(kWidths).c_str(), wgmma<Config<kDtype, kWidths, kSource, kSwizzle>>), ...);
  return true;
}

constexpr Dtype kF16 = Dtype::kFloat16, kBF16 = Dtype::kBFloat16;

// Every width, and for one width every type, source of a and swizzle. ../cases.py has the same list.
[[maybe_unused]] const bool added[] = {
    add<kBF16, Source::kShared, Swizzle::k128, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256>(),
    add<kBF16, Source::kShared, Swizzle::k64, 64>(),
    add<kBF16, Source::kShared, Swizzle::k32, 64>(),
    add<kBF16, Source::kShared, Swizzle::kNone, 64>(),
    add<kF16, Source::kShared, Swizzle::k128, 64>(),
    add<kF16, Source::kShared, Swizzle::k64, 64>(),
    add<kF16, Source::kShared, Swizzle::k32, 64>(),
    add<kF16, Source::kShared, Swizzle::kNone, 64>(),
    add<kBF16, Source::kRegisters, Swizzle::k128, 8, 64, 256>(),
    add<kBF16, Source::kRegisters, Swizzle::kNone, 64>(),
    add<kF16, Source::kRegisters, Swizzle::k128, 64>(),
};

}  // namespace
}  // namespace cuda_primitives
