// mma: one warp and one instruction per block.
#include "call.h"
#include "cuda/device/ptx/global.cuh"
#include "cuda/device/ptx/math.cuh"
#include "cuda/device/ptx/mma.cuh"
#include "cuda/device/types.h"
#include "cuda/runtime/launch.h"

namespace cuda_primitives {
namespace {

using namespace resnet_fused::cuda;

// Fragments have 4 words per lane (the last two of b are unused); out is d.
template <Dtype kDtype>
__global__ void __launch_bounds__(32) mma_kernel(const char* a, const char* b, const char* c, char* out) {
  const int at = static_cast<int>(blockIdx.x * 32 + threadIdx.x) * 16;
  uint32_t a_words[4], b_words[4], c_words[4];
  ptx::ld_global_v4(a_words, a + at);
  ptx::ld_global_v4(b_words, b + at);
  ptx::ld_global_v4(c_words, c + at);
  const uint32_t b_fragment[2] = {b_words[0], b_words[1]};
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = ptx::mov_f32_b32(c_words[i]);
  if constexpr (kDtype == Dtype::kFloat16)
    ptx::mma_m16n8k16_f16(d, a_words, b_fragment);
  else if constexpr (kDtype == Dtype::kBFloat16)
    ptx::mma_m16n8k16_bf16(d, a_words, b_fragment);
  else
    ptx::mma_m16n8k8_tf32(d, a_words, b_fragment);
  for (int i = 0; i < 4; ++i) c_words[i] = ptx::mov_b32_f32(d[i]);
  ptx::st_global_v4(out + at, c_words);
}

template <Dtype kDtype>
void mma(const Call& c) {
  LAUNCH(mma_kernel<kDtype>, c.number(0), 32, 0, nullptr, static_cast<const char*>(c.in(0)),
         static_cast<const char*>(c.in(1)), static_cast<const char*>(c.in(2)), static_cast<char*>(c.out(3)));
}

const Primitive registered[] = {
    {"mma_f16", mma<Dtype::kFloat16>}, {"mma_bf16", mma<Dtype::kBFloat16>}, {"mma_tf32", mma<Dtype::kFloat32>}};

}  // namespace
}  // namespace cuda_primitives
