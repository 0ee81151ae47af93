// RESNET_FUSED_CUDA_ENGINE, which overrides the plan. Pure.
#pragma once
#include <cstdint>
#include <string>

namespace resnet_fused::cuda {

// Manual override of the cost model: to compare, to measure, to run every kernel once on a new GPU.
struct EngineChoice {
  enum Kind : int32_t { kModel, kAll, kSm90, kSm80, kTorch };

  // kModel: the fastest by prediction; of sm90/ only verified kernels (trust.h). kAll: all of sm90/ compete. kSm90,
  // kSm80: a kernel of that folder wherever one can run. kTorch: no kernel.
  Kind kind = kModel;
  bool rows = false;               // kSm90: conv_rows only
  int32_t tile_m = 0, tile_n = 0;  // kSm90, kSm80: this tile only; 0: any
  int32_t splits = 0;              // kSm90, kSm80: the depth in so many parts, or as many as there are steps; 0: any
  bool block = false;              // kSm90: a BasicBlock in one launch wherever it can be; convolutions in any tile
};

// RESNET_FUSED_CUDA_ENGINE: all, torch, sm80, sm80:64x64, sm80:64x64:4, sm90, sm90:256x64, sm90:256x64:4, sm90:rows,
// sm90:rows:4x56, sm90:block; null or empty: kModel. Throws a sentence at any other.
EngineChoice engine_choice(const char* text);

// Every name that engine_choice takes but for what may follow a tile, separated by ", ".
std::string engine_names();

}  // namespace resnet_fused::cuda
