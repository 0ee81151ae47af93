// wgmma over pixels stored in planes, from any start position, as sm90/block_fwd uses it for a filter tap (sm_90a).
#include "cuda/device/ptx/wgmma.cuh"

#include "call.h"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/math.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/device/tile/planes.cuh"
#include "cuda/runtime/launch.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

constexpr int kColumns = 96, kPositions = 139, kDepth = 64;
constexpr uint32_t kABytes = 64 * kRowBytes;
using Pixels = Planes<kPositions>;

// a: swizzled rows of 128 bytes; b: 8 planes; out: a times the pixels from `first` on, 48 floats per thread.
__global__ void __launch_bounds__(128, 1) planes_kernel(const char* a, const char* b, uint32_t first, char* out) {
  DYNAMIC_SMEM(smem);
  const uint32_t place_a = ptx::smem_address(smem);
  const Pixels pixels{place_a + kABytes};
  uint32_t r[4];
  for (uint32_t i = threadIdx.x * 16; i < kABytes; i += 128 * 16) {
    ptx::ld_global_v4(r, a + i);
    ptx::st_shared_v4(place_a + i, r);
  }
  for (uint32_t i = threadIdx.x; i < kDepth / 8 * kPositions; i += 128) {
    ptx::ld_global_v4(r, b + i * 16);
    ptx::st_shared_v4(pixels.at(i / kPositions, i % kPositions), r);
  }
  ptx::fence_proxy_async();
  ptx::bar_sync_all();
  float d[kColumns / 2];
  ptx::wgmma_fence();
#pragma unroll
  for (uint32_t k = 0; k < kRowChunks; k += 2)
    ptx::wgmma_m64k16_bf16<kColumns>(d, smem_descriptor<Swizzle::k128>(place_a + k * kChunkBytes),
                                     pixels.operand(k, first), k > 0);
  ptx::wgmma_commit_group();
  ptx::wgmma_wait_group<0>();
#pragma unroll
  for (int i = 0; i < kColumns / 2; i += 4) {
#pragma unroll
    for (int j = 0; j < 4; ++j) r[j] = ptx::mov_b32_f32(d[i + j]);
    ptx::st_global_v4(out + threadIdx.x * (kColumns * 2) + i * 4, r);
  }
}

// buffers: a, b, out; numbers: first
void wgmma_planes(const Call& c) {
  LAUNCH(planes_kernel, 1, 128, static_cast<int>(kABytes + kDepth / 8 * Pixels::kPlaneBytes), nullptr,
         static_cast<const char*>(c.in(0)), static_cast<const char*>(c.in(1)), static_cast<uint32_t>(c.numbers[0]),
         static_cast<char*>(c.out(2)));
}

const Primitive registered[] = {{"wgmma_planes", wgmma_planes}};

}  // namespace
}  // namespace cuda_primitives
