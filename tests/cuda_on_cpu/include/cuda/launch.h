// The emulator's LAUNCH. No error can come back: what a kernel does wrong is reported by cuda_on_cpu::end().
#pragma once
#include "cuda_on_cpu.h"

#define LAUNCH(kernel, grid, block, smem, stream, ...) \
  ((void)(stream), ::cuda_on_cpu::launch({#kernel, 1, false}, kernel, grid, block, smem, __VA_ARGS__))

// Whether the launch ahead of it is one that the kernel could overlap with does not matter: it must behave.
#define LAUNCH_DEPENDENT(kernel, grid, block, smem, queue, ...) \
  ((void)(queue), ::cuda_on_cpu::launch({#kernel, 1, true}, kernel, grid, block, smem, __VA_ARGS__))
