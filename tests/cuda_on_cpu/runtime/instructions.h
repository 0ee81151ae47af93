// Run-time implementation of the instructions in include/cuda/device/ptx. Each function executes one instruction for
// the calling thread. Kernels call it through an always_inline wrapper, so that reports name the kernel's own line.
// instructions_sm90.h has mbarrier, TMA and wgmma; instructions_cluster.h has clusters.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cuda_on_cpu {

// global.cpp. An invalid load returns all-ones bits (NaN); an invalid store is dropped.
enum class Load { kPlain, kReadOnly };
void load_global(void* to, const void* address, size_t bytes, Load kind);
void store_global(void* address, const void* from, size_t bytes);

// shared.cpp
uint32_t shared_address(const void* pointer);
void load_shared(void* to, uint32_t address, size_t bytes);
void store_shared(uint32_t address, const void* from, size_t bytes);

// barrier.cpp
void barrier_sync_all();
void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);

// shuffle.cpp
void warp_sync(uint32_t lanes);
uint32_t shuffle_xor(uint32_t lanes, uint32_t value, uint32_t by);
uint32_t shuffle_index(uint32_t lanes, uint32_t value, uint32_t from);

// cp_async.cpp
void cp_async(uint32_t destination, const void* source, size_t bytes, bool valid);
void cp_async_commit();
void cp_async_wait(uint32_t pending);

// matrix.cpp
void ldmatrix_x4(uint32_t* d, uint32_t row, bool transposed);
void mma_f16(float* d, const uint32_t* a, const uint32_t* b);   // 16x8x16
void mma_bf16(float* d, const uint32_t* a, const uint32_t* b);  // 16x8x16
void mma_tf32(float* d, const uint32_t* a, const uint32_t* b);  // 16x8x8

}  // namespace cuda_on_cpu
