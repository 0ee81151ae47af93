// Barriers in shared memory that count arrivals of threads and bytes of TMA (sm_90). A barrier is 8 bytes, aligned to
// 8. Its phase ends when `count` threads have arrived and all expected bytes are there; phases are numbered from 0.
#pragma once
#include <cstdint>

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

namespace resnet_fused::cuda::ptx {

__device__ __forceinline__ void mbarrier_init(uint32_t barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// The 8 bytes are plain memory again.
__device__ __forceinline__ void mbarrier_inval(uint32_t barrier) {
  asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Shows this thread's mbarrier_inits to TMA; other threads need a bar_sync besides.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and makes the phase wait for so many bytes more.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

#ifndef RESNET_FUSED_WATCHDOG

// Until the phase of this parity has ended: of the current phase and the one before, the one whose number is odd (1)
// or even (0). The loop is part of the instruction, as the hardware may give a try up.
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

// The flavour "watchdog": a wait that does not end prints who waits for what and gives up, as do all others then, so a
// kernel that would hang ends with a wrong result.
constexpr long long kWatchdogClocks = 1 << 28;  // a tenth of a second
static __device__ int watchdog_reports = 0;

extern "C" __device__ int vprintf(const char* format, const void* arguments);  // what printf in a kernel becomes

static __device__ __noinline__ void watchdog_report(uint32_t barrier, uint32_t parity) {
  constexpr int kMost = 64;  // lines of a kernel
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
