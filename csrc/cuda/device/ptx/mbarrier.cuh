// Barriers in shared memory that count thread arrivals and TMA bytes (sm_90). A barrier is 8 bytes, aligned to 8. A
// phase completes when `count` threads have arrived and all expected bytes have landed. Phases are numbered from 0.
#pragma once
#include <cstdint>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Makes the 8 bytes plain memory again.
__device__ __forceinline__ void mbarrier_inval(uint32_t barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Makes this thread's mbarrier_init visible to TMA. Other threads also need a bar_sync.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and adds `bytes` to the bytes that the phase expects.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

#ifndef RESNET_FUSED_WATCHDOG

// Waits until the phase of this parity has completed: of the current phase and the previous one, the one whose number
// is even (0) or odd (1). Loops, because the hardware may time out a try_wait.
__device__ __forceinline__ void mbarrier_wait_parity(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

#else

// Build flavour "watchdog": a wait that takes too long prints its thread and barrier and gives up, and from then on so
// does every other unfinished wait. A kernel that would hang ends with a wrong result instead.
constexpr long long kWatchdogClocks = 1 << 28;  // about 0.1 s
static __device__ int watchdog_reports = 0;

extern "C" __device__ int vprintf(const char* format, const void* arguments);  // what printf compiles to in a kernel

static __device__ __noinline__ void watchdog_report(uint32_t barrier, uint32_t parity) {
  constexpr int kMost = 64;  // lines printed
  if (atomicAdd(&watchdog_reports, 1) >= kMost) return;
  uint32_t low, high;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(low), "=r"(high) : "r"(barrier));
  const uint32_t numbers[] = {blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, barrier, parity, high, low};
  vprintf("watchdog: block (%u, %u, %u), thread %u waits at barrier 0x%x for parity %u; its 8 bytes are %08x %08x\n",
          numbers);
}

__device__ __forceinline__ void mbarrier_wait_parity(uint32_t barrier, uint32_t parity) {
  const long long start = clock64();
  for (;;) {
    uint32_t done;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    if (done) return;
    if (*reinterpret_cast<volatile int*>(&watchdog_reports) != 0 || clock64() - start > kWatchdogClocks)
      return watchdog_report(barrier, parity);
  }
}

#endif

}  // namespace resnet_fused::cuda::ptx

#endif
