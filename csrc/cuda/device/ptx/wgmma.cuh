// Warpgroup matrix instructions (sm_90a): d += a * b, 64 x kN x 16, with float32 accumulation. They are asynchronous:
// call wgmma_fence, the instructions, wgmma_commit_group, and wgmma_wait_group before d, a or b is accessed again.
// Fragment layouts: PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16".
#pragma once
#include <cstdint>

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

namespace resnet_fused::cuda::ptx {

// Orders the warpgroup's register accesses before the wgmmas that follow. Needed before the first wgmma, and again
// after d, or an a in registers, has been accessed. Shared memory written by threads also needs fence_proxy_async.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until all groups of this warpgroup but the latest kPending have completed.
template <int kPending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// clang-format off
// Operands %0 to %(N/2 - 1) of an instruction are d. WGMMA_EVERY_N numbers the operands after d.
#define WGMMA_D_8 "%0, %1, %2, %3"
#define WGMMA_D_16 WGMMA_D_8 ", %4, %5, %6, %7"
#define WGMMA_D_24 WGMMA_D_16 ", %8, %9, %10, %11"
#define WGMMA_D_32 WGMMA_D_24 ", %12, %13, %14, %15"
#define WGMMA_D_48 WGMMA_D_32 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define WGMMA_D_64 WGMMA_D_48 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define WGMMA_D_96 WGMMA_D_64 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WGMMA_D_128 WGMMA_D_96 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_D_160 WGMMA_D_128 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define WGMMA_D_192 WGMMA_D_160 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define WGMMA_D_224 WGMMA_D_192 ", %96, %97, %98, %99, %100, %101, %102, %103" \
                                 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define WGMMA_D_256 WGMMA_D_224 ", %112, %113, %114, %115, %116, %117, %118, %119" \
                                 ", %120, %121, %122, %123, %124, %125, %126, %127"

#define WGMMA_FLOATS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_FLOATS_8(i) WGMMA_FLOATS_4(i), WGMMA_FLOATS_4(i + 4)
#define WGMMA_FLOATS_16(i) WGMMA_FLOATS_8(i), WGMMA_FLOATS_8(i + 8)

#define WGMMA_FLOATS_OF_8 WGMMA_FLOATS_4(0)
#define WGMMA_FLOATS_OF_16 WGMMA_FLOATS_OF_8, WGMMA_FLOATS_4(4)
#define WGMMA_FLOATS_OF_24 WGMMA_FLOATS_OF_16, WGMMA_FLOATS_4(8)
#define WGMMA_FLOATS_OF_32 WGMMA_FLOATS_OF_24, WGMMA_FLOATS_4(12)
#define WGMMA_FLOATS_OF_48 WGMMA_FLOATS_OF_32, WGMMA_FLOATS_8(16)
#define WGMMA_FLOATS_OF_64 WGMMA_FLOATS_OF_48, WGMMA_FLOATS_8(24)
#define WGMMA_FLOATS_OF_96 WGMMA_FLOATS_OF_64, WGMMA_FLOATS_16(32)
#define WGMMA_FLOATS_OF_128 WGMMA_FLOATS_OF_96, WGMMA_FLOATS_16(48)
#define WGMMA_FLOATS_OF_160 WGMMA_FLOATS_OF_128, WGMMA_FLOATS_16(64)
#define WGMMA_FLOATS_OF_192 WGMMA_FLOATS_OF_160, WGMMA_FLOATS_16(80)
#define WGMMA_FLOATS_OF_224 WGMMA_FLOATS_OF_192, WGMMA_FLOATS_16(96)
#define WGMMA_FLOATS_OF_256 WGMMA_FLOATS_OF_224, WGMMA_FLOATS_16(112)

// a and b in shared memory. After them: predicate "add to d", signs of a and b, transposition of a and b (none).
#define WGMMA_SHARED(N, TYPE, A, B, P, ...)                                                         \
  asm volatile(                                                                                     \
      "{\n"                                                                                         \
      ".reg .pred p;\n"                                                                             \
      "setp.ne.b32 p, %" #P ", 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" WGMMA_D_##N "}, "        \
      "%" #A ", %" #B ", p, 1, 1, 0, 0;\n"                                                          \
      "}"                                                                                           \
      : WGMMA_FLOATS_OF_##N                                                                         \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)))

// a in registers, b in shared memory.
#define WGMMA_REGISTERS(N, TYPE, A0, A1, A2, A3, B, P)                                              \
  asm volatile(                                                                                     \
      "{\n"                                                                                         \
      ".reg .pred p;\n"                                                                             \
      "setp.ne.b32 p, %" #P ", 0;\n"                                                                \
      "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" WGMMA_D_##N "}, "        \
      "{%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B ", p, 1, 1, 0;\n"                            \
      "}"                                                                                           \
      : WGMMA_FLOATS_OF_##N                                                                         \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)))

// Expands INSTRUCTION for the kN of the enclosing function.
#define WGMMA_EVERY_N(INSTRUCTION, TYPE)                                              \
  if constexpr (kN == 8) INSTRUCTION(8, TYPE, 4, 5, 6, 7, 8, 9);                      \
  else if constexpr (kN == 16) INSTRUCTION(16, TYPE, 8, 9, 10, 11, 12, 13);           \
  else if constexpr (kN == 24) INSTRUCTION(24, TYPE, 12, 13, 14, 15, 16, 17);         \
  else if constexpr (kN == 32) INSTRUCTION(32, TYPE, 16, 17, 18, 19, 20, 21);         \
  else if constexpr (kN == 48) INSTRUCTION(48, TYPE, 24, 25, 26, 27, 28, 29);         \
  else if constexpr (kN == 64) INSTRUCTION(64, TYPE, 32, 33, 34, 35, 36, 37);         \
  else if constexpr (kN == 96) INSTRUCTION(96, TYPE, 48, 49, 50, 51, 52, 53);         \
  else if constexpr (kN == 128) INSTRUCTION(128, TYPE, 64, 65, 66, 67, 68, 69);       \
  else if constexpr (kN == 160) INSTRUCTION(160, TYPE, 80, 81, 82, 83, 84, 85);       \
  else if constexpr (kN == 192) INSTRUCTION(192, TYPE, 96, 97, 98, 99, 100, 101);     \
  else if constexpr (kN == 224) INSTRUCTION(224, TYPE, 112, 113, 114, 115, 116, 117); \
  else if constexpr (kN == 256) INSTRUCTION(256, TYPE, 128, 129, 130, 131, 132, 133); \
  else static_assert(kN < 0, "ptx/wgmma.cuh has no wgmma of this width")
// clang-format on

// a and b are descriptors (tile/smem_descriptor.cuh) of K-major operands: 64 and kN rows of 16 elements. Without
// accumulate, d = a * b.
template <int kN>
__device__ __forceinline__ void wgmma_m64k16_f16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  WGMMA_EVERY_N(WGMMA_SHARED, "f16");
}

template <int kN>
__device__ __forceinline__ void wgmma_m64k16_bf16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool accumulate) {
  WGMMA_EVERY_N(WGMMA_SHARED, "bf16");
}

// Each warp holds 16 rows of a, laid out as for mma_m16n8k16.
template <int kN>
__device__ __forceinline__ void wgmma_m64k16_f16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                                 bool accumulate) {
  WGMMA_EVERY_N(WGMMA_REGISTERS, "f16");
}

template <int kN>
__device__ __forceinline__ void wgmma_m64k16_bf16(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                                                  bool accumulate) {
  WGMMA_EVERY_N(WGMMA_REGISTERS, "bf16");
}

}  // namespace resnet_fused::cuda::ptx

#endif
