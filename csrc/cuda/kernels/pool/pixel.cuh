// The loop over the pixels of a pooling's input or output, and the addresses of their channels.
#pragma once
#include "cuda/device/tile/bytes.cuh"
#include "cuda/kernels/bn/grid_stride.cuh"
#include "cuda/kernels/pool/pool.h"

namespace resnet_fused::cuda {

struct Pixel {
  int32_t image, h, w;

  __device__ __forceinline__ Pixel(const PoolLoop& loop, uint32_t i) {
    const uint32_t row = loop.columns.div(i), n = loop.rows.div(row);
    w = i - row * loop.columns.divisor;
    h = row - n * loop.rows.divisor;
    image = n;
  }
};

// A thread's place in the grid-stride loop of both pooling kernels.
struct PoolThread {
  uint32_t lane, split;

  __device__ __forceinline__ explicit PoolThread(const PoolLoop& loop)
      : lane(blockIdx.x % loop.groups * loop.lanes + threadIdx.x % loop.lanes), split(blockIdx.x / loop.groups) {}

  // body(pixel, access): each of the thread's pixels, and the index of its access there.
  template <typename Body>
  __device__ __forceinline__ void for_each_pixel(const PoolLoop& loop, const Body& body) const {
    const uint32_t step = loop.splits * loop.slots;
    for (uint32_t i = split * loop.slots + threadIdx.x / loop.lanes; i < loop.items; i += step)
      body(Pixel(loop, i), i * loop.all_lanes + lane);
  }
};

// Index of the access of lane `lane` at pixel (h, w) of image `image`, in a tensor of rows x columns pixels per image.
__device__ __forceinline__ uint32_t access_of(const PoolLoop& loop, uint32_t lane, int32_t image, int32_t h, int32_t w,
                                              int32_t rows, int32_t columns) {
  return ((image * rows + h) * columns + w) * loop.all_lanes + lane;
}

// Byte offset of an access, in a tensor of Config's dtype and in one of uint8.
template <typename Config>
__device__ __forceinline__ uint64_t data_at(uint32_t access) {
  return static_cast<uint64_t>(access) * (Config::kVector * kSizeOf<Config::kDtype>);
}
template <typename Config>
__device__ __forceinline__ uint64_t bytes_at(uint32_t access) {
  return static_cast<uint64_t>(access) * Config::kVector;
}

__device__ __forceinline__ int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
__device__ __forceinline__ int32_t larger(int32_t a, int32_t b) { return a < b ? b : a; }

}  // namespace resnet_fused::cuda
