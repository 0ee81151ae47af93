// RESNET_FUSED_CUDA_ENGINE, which overrides the cost model: to compare, to measure, to run every kernel once on a new
// GPU. Its names are those of the planners and their tiles. Pure.
#pragma once
#include <cstdint>
#include <string>

#include "cuda/plan/planner.h"

namespace resnet_fused::cuda {

struct Override {
  enum Kind : int32_t { kNone, kAll, kNamed };

  // kNone: the fastest by prediction; sm90/ kernels only if verified (trust.h). kAll: all sm90/ kernels compete.
  // kNamed: a kernel wherever it can run, or torch; "sm80" and "sm90" stand for any kernel of the folder.
  Kind kind = kNone;
  Engine engine = Engine::kTorch;  // kNamed
  int32_t tile = -1;               // this tile only, an index; negative: any
  int32_t splits = 0;              // cut the depth into this many parts, at most one per step; 0: any
};

// Parses RESNET_FUSED_CUDA_ENGINE: all, torch, sm80, sm80:64x64, sm80:64x64:4, sm90, sm90:256x64, sm90:256x64:4,
// sm90:rows, sm90:rows:4x56, sm90:block; null or empty: kNone. Throws std::runtime_error for any other.
Override override_of(const char* text);
std::string to_string(const Override& override);  // the same form

// All names that override_of accepts, without the number of parts after a tile, separated by ", ".
std::string engine_names();

// What an override says of a candidate. kNamed: it is chosen wherever it can run. kEnabled: it competes, verified or
// not.
enum class Match : int32_t { kOtherTile, kByDefault, kEnabled, kNamed };
Match match_of(const Override& override, const Planner& planner, int32_t tile);
// Whether it rules out all of a planner's candidates.
bool is_excluded(const Override& override, const Planner& planner);
// Whether it names the kernel, or its folder.
bool is_named(const Override& override, const Planner& planner);

}  // namespace resnet_fused::cuda
