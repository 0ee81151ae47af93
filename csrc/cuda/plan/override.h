// RESNET_FUSED_CUDA_ENGINE, which overrides the cost model: to compare, to measure, to run every kernel once on a new
// GPU. Pure.
#pragma once
#include <cstdint>
#include <string>

#include "cuda/plan/types.h"

namespace resnet_fused::cuda {

struct Override {
  enum Kind : int32_t { kNone, kAll, kSm90, kSm80, kTorch };

  // kNone: the fastest by prediction; sm90/ kernels only if verified (trust.h). kAll: all sm90/ kernels compete.
  // kSm90, kSm80: a kernel of that folder wherever one can run. kTorch: PyTorch's convolution.
  Kind kind = kNone;
  bool rows = false;               // kSm90: conv_rows only
  int32_t tile_m = 0, tile_n = 0;  // kSm90, kSm80: this tile only; 0: any
  int32_t splits = 0;              // kSm90, kSm80: cut the depth into this many parts, at most one per step; 0: any
  bool block = false;              // kSm90: a BasicBlock in one launch wherever possible; convolutions in any tile
};

// Parses RESNET_FUSED_CUDA_ENGINE: all, torch, sm80, sm80:64x64, sm80:64x64:4, sm90, sm90:256x64, sm90:256x64:4,
// sm90:rows, sm90:rows:4x56, sm90:block; null or empty: kNone. Throws std::runtime_error for any other.
Override override_of(const char* text);
std::string to_string(const Override& override);  // the same form

// All names that override_of accepts, without the split count after a tile, separated by ", ".
std::string engine_names();

// What an override says of a candidate. kNamed: it is chosen wherever it can run. kEnabled: it competes, verified or
// not.
enum class Match : int32_t { kOtherTile, kByDefault, kEnabled, kNamed };
Match match_of(const Override& override, const Candidate& candidate);
// Whether it rules out all candidates of an engine.
bool is_excluded(const Override& override, Engine engine);

}  // namespace resnet_fused::cuda
