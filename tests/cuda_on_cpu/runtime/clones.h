// Marks a function that is worth compiling twice: for any processor, and for one with wide vectors.
#pragma once

#if defined(__x86_64__)
#define CUDA_ON_CPU_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CUDA_ON_CPU_CLONES
#endif
