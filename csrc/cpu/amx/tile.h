// AMX's instructions, one wrapper each: all the tile assembly of the project. tests/emulated_amx replaces this file by
// C++ that computes the same.
//
// Inline assembly instead of intrinsics: those of GCC 12 declare neither the configuration nor the tiles as memory that
// is read, so the compiler may drop the stores before them.
#pragma once
#include <cstdint>

#include "cpu/amx/config.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace resnet_fused::cpu::amx {
namespace {

// Asks Linux (5.16) for the tile registers, for all threads of the process.
inline bool request_permission() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023, kXfeatureXtileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
#else
  return false;
#endif
}

// Zeroes every tile.
inline void load_config(const Config& config) { asm volatile("ldtilecfg (%0)" : : "r"(&config) : "memory"); }

inline void release() { asm volatile("tilerelease" : : : "memory"); }

template <int T>
inline void zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(T));
}

// `step`: bytes from a row to the next.
template <int T>
inline void load(const void* from, int64_t step) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(step), "i"(T) : "memory");
}

template <int T>
inline void store(void* to, int64_t step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(step), "i"(T) : "memory");
}

// C[m][n] += sum over k of A[m][2k] * B[k][2n] + A[m][2k + 1] * B[k][2n + 1], in float32; A and B are bfloat16.
template <int C, int A, int B>
inline void multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace resnet_fused::cpu::amx
