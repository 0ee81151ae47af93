// The emulated twin of csrc/cuda/device/ptx/tma.cuh.
#pragma once
#include "cuda_on_cpu.h"
#include "runtime/instructions_sm90.h"

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void prefetch_tensormap(const TensorMap& map) { cuda_on_cpu::prefetch_tensormap(map); }

__device__ __forceinline__ void tma_load_2d(uint32_t destination, const TensorMap& map, uint32_t barrier, int c0,
                                            int c1) {
  cuda_on_cpu::tma_load(destination, map, barrier, {{c0, c1}}, 2);
}

__device__ __forceinline__ void tma_load_3d(uint32_t destination, const TensorMap& map, uint32_t barrier, int c0,
                                            int c1, int c2) {
  cuda_on_cpu::tma_load(destination, map, barrier, {{c0, c1, c2}}, 3);
}

__device__ __forceinline__ void tma_load_4d(uint32_t destination, const TensorMap& map, uint32_t barrier, int c0,
                                            int c1, int c2, int c3) {
  cuda_on_cpu::tma_load(destination, map, barrier, {{c0, c1, c2, c3}}, 4);
}

__device__ __forceinline__ void tma_load_im2col_4d(uint32_t destination, const TensorMap& map, uint32_t barrier, int c,
                                                   int w, int h, int n, uint16_t offset_w, uint16_t offset_h) {
  cuda_on_cpu::tma_load_im2col(destination, map, barrier, {{c, w, h, n}, offset_w, offset_h});
}

__device__ __forceinline__ void tma_store_2d(const TensorMap& map, uint32_t source, int c0, int c1) {
  cuda_on_cpu::tma_store(map, source, {{c0, c1}}, 2);
}

__device__ __forceinline__ void tma_store_3d(const TensorMap& map, uint32_t source, int c0, int c1, int c2) {
  cuda_on_cpu::tma_store(map, source, {{c0, c1, c2}}, 3);
}

__device__ __forceinline__ void tma_store_4d(const TensorMap& map, uint32_t source, int c0, int c1, int c2, int c3) {
  cuda_on_cpu::tma_store(map, source, {{c0, c1, c2, c3}}, 4);
}

__device__ __forceinline__ void bulk_commit_group() { cuda_on_cpu::bulk_commit_group(); }

template <int kPending>
__device__ __forceinline__ void bulk_wait_group() {
  cuda_on_cpu::bulk_wait_group(kPending);
}

// Same as bulk_wait_group here. The full wait also makes the writes visible to other threads, which matters only after
// the launch, when all writes are visible anyway.
template <int kPending>
__device__ __forceinline__ void bulk_wait_group_read() {
  cuda_on_cpu::bulk_wait_group(kPending);
}

__device__ __forceinline__ void fence_proxy_async() { cuda_on_cpu::fence_proxy_async(); }

}  // namespace resnet_fused::cuda::ptx
