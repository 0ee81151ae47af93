// The emulator's LAUNCH_CLUSTER.
#pragma once
#include "cuda_on_cpu.h"

#define LAUNCH_CLUSTER(kernel, cluster, grid, block, smem, stream, ...) \
  ((void)(stream),                                                      \
   ::cuda_on_cpu::launch({#kernel, static_cast<unsigned>(cluster), false}, kernel, grid, block, smem, __VA_ARGS__))
