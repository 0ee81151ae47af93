// The emulator's LAUNCH. No error can come back: what a kernel does wrong is reported by cuda_on_cpu::end().
#pragma once
#include "cuda_on_cpu.h"

#define LAUNCH(kernel, grid, block, smem, stream, ...)  \
  ((void)(stream), ::cuda_on_cpu::name_launch(#kernel), \
   ::cuda_on_cpu::launch(kernel, 1, grid, block, smem, __VA_ARGS__))
