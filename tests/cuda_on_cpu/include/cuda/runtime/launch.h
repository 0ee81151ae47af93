// The emulator's LAUNCH. It never throws: cuda_on_cpu::end() reports what a kernel did wrong.
#pragma once
#include "cuda_on_cpu.h"

#define LAUNCH(kernel, grid, block, smem, stream, ...) \
  ((void)(stream), ::cuda_on_cpu::launch({#kernel, 1, false}, kernel, grid, block, smem, __VA_ARGS__))

// Always treated as overlapping with the previous launch, even if a GPU would not overlap the two.
#define LAUNCH_DEPENDENT(kernel, grid, block, smem, queue, ...) \
  ((void)(queue), ::cuda_on_cpu::launch({#kernel, 1, true}, kernel, grid, block, smem, __VA_ARGS__))

#define LAUNCH_CLUSTER(kernel, cluster, grid, block, smem, stream, ...) \
  ((void)(stream),                                                      \
   ::cuda_on_cpu::launch({#kernel, static_cast<unsigned>(cluster), false}, kernel, grid, block, smem, __VA_ARGS__))
