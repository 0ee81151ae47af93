// Direct convolution with groups, for AVX2 and AVX-512: direct.h's, a section of the channels at a time. Plain numbers
// and pointers only, as there.
#pragma once
#include "cpu/direct.h"

namespace resnet_fused::cpu {

// How a grouped convolution is split into tasks. A section is one group, or, of narrow groups, as many as share a
// register of output channels.
struct GroupedTiling {
  bool narrow;
  int c, k;       // input and output channels of a section; the last narrow section may have fewer
  int vectors;    // registers across output channels in the main block
  int sections;   // of the channels
  int blocks;     // tasks that an image's output rows are split into, for each section
  int64_t tasks;  // n * blocks * sections
};

// The kernels of one instruction set and one element type. DirectConv without a pool.
struct GroupedKernels {
  GroupedTiling (*tile)(const DirectConv& conv, int threads);
  int64_t (*packed_bytes)(const DirectConv& conv, const GroupedTiling& tiling);
  // Packs a weight of any strides. Returns false if a value is not finite.
  bool (*pack)(const DirectConv& conv, const GroupedTiling& tiling, const void* weight, const int64_t strides[4],
               void* packed);
  void (*run)(const DirectConv& conv, const GroupedTiling& tiling, int64_t begin, int64_t end);  // tasks
};

}  // namespace resnet_fused::cpu
