// Compiles a hot function twice: for the baseline processor and for AVX2.
#pragma once

#if defined(__x86_64__)
#define CUDA_ON_CPU_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CUDA_ON_CPU_CLONES
#endif
