// A LAUNCH_CLUSTER that launches nothing.
#pragma once
#include "cuda/launch.h"

#define LAUNCH_CLUSTER(kernel, cluster, grid, block, smem, stream, ...) \
  LAUNCH(kernel, grid, block, smem, stream, __VA_ARGS__)
