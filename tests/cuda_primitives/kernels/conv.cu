// All of sm_90a together: a 3x3 convolution as an implicit GEMM. One thread loads (im2col and tiled TMA), two
// warpgroups multiply (wgmma) and write the result to shared memory (stmatrix), and TMA stores it. bfloat16, NHWC and
// KRSC, stride 1 or 2.
#include "call.h"
#include "cuda/device/ptx/control.cuh"
#include "cuda/device/ptx/math.cuh"
#include "cuda/device/ptx/mbarrier.cuh"
#include "cuda/device/ptx/shared.cuh"
#include "cuda/device/ptx/stmatrix.cuh"
#include "cuda/device/ptx/sync.cuh"
#include "cuda/device/ptx/tma.cuh"
#include "cuda/device/ptx/wgmma.cuh"
#include "cuda/device/tile/smem_descriptor.cuh"
#include "cuda/runtime/launch.h"
#include "tensor_numbers.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

// A block computes kTileM pixels of kTileN channels; a stage has kDepth channels of one of the filter's taps.
constexpr uint32_t kTileM = 128, kTileN = 64, kDepth = 64, kStages = 3, kTaps = 3;
constexpr uint32_t kRowBytes = kDepth * 2, kABytes = kTileM * kRowBytes, kBBytes = kTileN * kRowBytes;
constexpr uint32_t kStageBytes = kABytes + kBBytes;
constexpr uint32_t kConsumers = 2, kConsumerWarps = 4 * kConsumers;
constexpr uint32_t kOutBytes = 64 * kTileN * 2;  // per consumer

// Shared memory, in bytes: stages, the consumers' outputs, barriers.
constexpr uint32_t kOut = kStages * kStageBytes, kFull = kOut + kConsumers * kOutBytes, kEmpty = kFull + 8 * kStages;
constexpr uint32_t kSmemBytes = kEmpty + 8 * kStages;

struct ConvShape {
  int32_t channel_steps, p, q, stride, pad;
};

__device__ __forceinline__ void produce(uint32_t smem, const TensorMap& x, const TensorMap& weight,
                                        const ConvShape& s) {
  const int pixel = static_cast<int>(blockIdx.x * kTileM), n = pixel / (s.p * s.q), in_image = pixel % (s.p * s.q);
  const int h = in_image / s.q * s.stride - s.pad, w = in_image % s.q * s.stride - s.pad;
  const int steps = s.channel_steps * static_cast<int>(kTaps * kTaps);
  for (int k = 0; k < steps; ++k) {
    const uint32_t stage = k % kStages, round = k / kStages, a = smem + stage * kStageBytes;
    const uint32_t full = smem + kFull + 8 * stage, empty = smem + kEmpty + 8 * stage;
    ptx::mbarrier_wait_parity(empty, (round & 1) ^ 1);
    ptx::mbarrier_arrive_expect_tx(full, kStageBytes);
    const int tap = k / s.channel_steps, channel = k % s.channel_steps * static_cast<int>(kDepth);
    ptx::tma_load_im2col_4d(a, x, full, channel, w, h, n, static_cast<uint16_t>(tap % kTaps),
                            static_cast<uint16_t>(tap / kTaps));
    ptx::tma_load_2d(a + kABytes, weight, full, k * static_cast<int>(kDepth), static_cast<int>(blockIdx.y * kTileN));
  }
}

__device__ __forceinline__ void multiply(float (&sum)[kTileN / 2], uint32_t smem, uint32_t consumer, uint32_t lane,
                                         int steps) {
  for (int k = 0; k < steps; ++k) {
    const uint32_t stage = k % kStages, a = smem + stage * kStageBytes + consumer * 64 * kRowBytes;
    const uint32_t b = smem + stage * kStageBytes + kABytes;
    ptx::mbarrier_wait_parity(smem + kFull + 8 * stage, k / kStages & 1);
    ptx::wgmma_fence();
#pragma unroll
    for (uint32_t i = 0; i < kDepth / 16; ++i)
      ptx::wgmma_m64k16_bf16<kTileN>(sum, smem_descriptor<Swizzle::k128>(a + i * 32),
                                     smem_descriptor<Swizzle::k128>(b + i * 32), k > 0 || i > 0);
    ptx::wgmma_commit_group();
    ptx::wgmma_wait_group<1>();
    if (k > 0 && lane == 0) ptx::mbarrier_arrive(smem + kEmpty + 8 * ((k - 1) % kStages));
  }
  ptx::wgmma_wait_group<0>();
}

// A warp has 16 rows of 128 bytes. Each stmatrix stores four 8x8 matrices, two along rows by two along columns.
__device__ __forceinline__ void store(const float (&sum)[kTileN / 2], uint32_t out, const TensorMap& y,
                                      uint32_t consumer) {
  const uint32_t warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32, row = warp * 16 + lane % 16;
#pragma unroll
  for (uint32_t j = 0; j < kTileN / 16; ++j) {
    uint32_t words[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) words[i] = ptx::cvt_rn_bf16x2_f32(sum[j * 8 + i * 2], sum[j * 8 + i * 2 + 1]);
    const uint32_t piece = j * 2 + lane / 16;
    ptx::stmatrix_x4(out + row * kRowBytes + (piece ^ row % 8) * 16, words);
  }
  ptx::fence_proxy_async();
  ptx::bar_sync(1 + static_cast<int>(consumer), 128);
  if (warp == 0 && lane == 0) {
    const int first = static_cast<int>(blockIdx.x * kTileM + consumer * 64);
    ptx::tma_store_2d(y, out, static_cast<int>(blockIdx.y * kTileN), first);
    ptx::bulk_commit_group();
    ptx::bulk_wait_group<0>();
  }
}

__global__ void __launch_bounds__(384, 1)
    conv_kernel(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap weight,
                const __grid_constant__ TensorMap y, const ConvShape shape) {
  DYNAMIC_SMEM(memory);
  const uint32_t smem = ptx::smem_address(memory), group = threadIdx.x / 128, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(smem + kFull + 8 * i, 1);
      ptx::mbarrier_init(smem + kEmpty + 8 * i, kConsumerWarps);
    }
    ptx::fence_mbarrier_init();
  }
  ptx::bar_sync_all();
  if (group == kConsumers) {
    ptx::setmaxnreg_dec<40>();
    if (threadIdx.x % 128 == 0) produce(smem, x, weight, shape);
    return;
  }
  ptx::setmaxnreg_inc<232>();
  float sum[kTileN / 2];
  multiply(sum, smem, group, lane, shape.channel_steps * static_cast<int>(kTaps * kTaps));
  store(sum, smem + kOut + group * kOutBytes, y, group);
}

// buffers: x, weight, y; numbers: map of x, of weight, of y; channel_steps, p, q, stride, pad; tiles of m and of n
void conv(const Call& c) {
  Numbers numbers(c);
  const TensorMap x = take_im2col(numbers, c.in(0)), weight = take_tiled(numbers, c.in(1));
  const TensorMap y = take_tiled(numbers, c.out(2));
  ConvShape shape;
  int32_t* const fields[] = {&shape.channel_steps, &shape.p, &shape.q, &shape.stride, &shape.pad};
  for (int32_t* field : fields) *field = numbers.take32();
  dim3 grid;
  grid.x = static_cast<unsigned>(numbers.take32());
  grid.y = static_cast<unsigned>(numbers.take32());
  LAUNCH(conv_kernel, grid, 384, static_cast<int>(kSmemBytes), nullptr, x, weight, y, shape);
}

const Primitive registered[] = {{"conv", conv}};

}  // namespace
}  // namespace cuda_primitives
