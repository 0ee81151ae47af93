// Run-time implementation of sm_90 instructions; see instructions.h.
#pragma once
#include <cstdint>

#include "cuda/runtime/tensor_map.h"

namespace cuda_on_cpu {

// mbarrier.cpp
void mbarrier_init(uint32_t address, uint32_t count);
void mbarrier_inval(uint32_t address);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t address, uint32_t expected_bytes);
void mbarrier_wait_parity(uint32_t address, uint32_t parity);
void fence_proxy_async();

// tma.cpp
struct Coordinates {
  int c[resnet_fused::cuda::kMostTensorRank];  // innermost first
  uint16_t offset_w = 0, offset_h = 0;         // im2col
};
void tma_load(uint32_t destination, const resnet_fused::cuda::TensorMap& map, uint32_t barrier, const Coordinates& at,
              int rank);
void tma_load_im2col(uint32_t destination, const resnet_fused::cuda::TensorMap& map, uint32_t barrier,
                     const Coordinates& at);
void tma_store(const resnet_fused::cuda::TensorMap& map, uint32_t source, const Coordinates& at, int rank);
void bulk_commit_group();
void bulk_wait_group(int pending);
void prefetch_tensormap(const resnet_fused::cuda::TensorMap& map);

// wgmma.cpp
enum class Half : uint8_t { kF16, kBF16 };  // type of a and b

// d = a * b, or d += a * b if `accumulate`. d has n / 2 floats per thread. a is in registers (4 words per thread) if
// a_words is not null, else in shared memory at the descriptor `a`.
struct WgmmaOperands {
  Half type;
  int n;
  float* d;
  uint64_t a;
  const uint32_t* a_words;
  uint64_t b;
  bool accumulate;
};
void wgmma_fence();
void wgmma(const WgmmaOperands& operands);
void wgmma_commit_group();
void wgmma_wait_group(int pending);

// stmatrix.cpp
void stmatrix_x4(uint32_t row, const uint32_t* words, bool transposed);

// control.cpp
bool elect_one();
void griddepcontrol_wait();
void setmaxnreg(int registers);

}  // namespace cuda_on_cpu
