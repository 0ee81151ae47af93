#include "cuda/plan/override.h"

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "cuda/kernels/sm80/conv_fwd.h"
#include "cuda/kernels/sm90/conv_rows.h"
#include "cuda/kernels/sm90/conv_sm90.h"

namespace resnet_fused::cuda {

namespace {

std::string named_tile(const char* before, int32_t m, int32_t n) {
  return before + std::to_string(m) + "x" + std::to_string(n);
}

}  // namespace

std::string engine_names() {
  std::string names = "all, torch, sm80, sm90, sm90:block, sm90:rows";
  for (const ConvFwdTile& t : kConvFwdTiles) names += named_tile(", sm80:", t.m, t.n);
  for (const ConvSm90Tile& t : kConvSm90Tiles) names += named_tile(", sm90:", t.pixels, t.channels);
  for (const ConvRowsTile& t : kConvRowsTiles) names += named_tile(", sm90:rows:", t.rows, t.columns);
  return names;
}

Override override_of(const char* text) {
  const std::string name = text ? text : "";
  Override choice;
  if (name.empty()) return choice;
  if (name == "all") {
    choice.kind = Override::kAll;
    return choice;
  }
  const std::string family = name.substr(0, name.find(':'));
  choice.kind = family == "sm90"    ? Override::kSm90
                : family == "sm80"  ? Override::kSm80
                : family == "torch" ? Override::kTorch
                                    : Override::kNone;
  if (choice.kind != Override::kNone && name == family) return choice;
  if (name == "sm90:block") {
    choice.block = true;
    return choice;
  }
  const std::string of_rows = family + ":rows";
  choice.rows = choice.kind == Override::kSm90 && name.rfind(of_rows, 0) == 0;
  if (choice.rows && name == of_rows) return choice;
  const size_t named = choice.rows ? of_rows.size() : family.size();
  int end = 0;
  std::sscanf(name.c_str() + std::min(named, name.size()), ":%dx%d%n:%d%n", &choice.tile_m, &choice.tile_n, &end,
              &choice.splits, &end);
  bool known = false;
  for (const ConvFwdTile& t : kConvFwdTiles)
    known |= choice.kind == Override::kSm80 && t.m == choice.tile_m && t.n == choice.tile_n && choice.splits >= 0;
  for (const ConvSm90Tile& t : kConvSm90Tiles)
    known |= choice.kind == Override::kSm90 && !choice.rows && t.pixels == choice.tile_m &&
             t.channels == choice.tile_n && choice.splits >= 0;
  for (const ConvRowsTile& t : kConvRowsTiles)
    known |= choice.rows && t.rows == choice.tile_m && t.columns == choice.tile_n && choice.splits == 0;
  if (known && named + end == name.size()) return choice;
  throw std::runtime_error("RESNET_FUSED_CUDA_ENGINE is " + name + "; one of " + engine_names() +
                           " expected, after a tile of m x n perhaps :4 for a depth in 4 parts; or unset it to let the "
                           "plan choose");
}

std::string to_string(const Override& o) {
  constexpr const char* kKinds[] = {"", "all", "sm90", "sm80", "torch"};
  std::string text = kKinds[o.kind];
  if (o.block) text += ":block";
  if (o.rows) text += ":rows";
  if (o.tile_m) text += named_tile(":", o.tile_m, o.tile_n);
  if (o.splits) text += ":" + std::to_string(o.splits);
  return text;
}

Match match_of(const Override& o, const Candidate& c) {
  const bool same = !o.tile_m || (c.variant.tile_m == o.tile_m && c.variant.tile_n == o.tile_n);
  const Match tile = same ? Match::kNamed : Match::kOtherTile;
  switch (o.kind) {
    case Override::kAll:
      return Match::kEnabled;
    case Override::kSm90:
      if (c.engine == Engine::kSm90Block) return o.block ? Match::kNamed : Match::kEnabled;
      return c.engine == Engine::kSm90 || c.engine == Engine::kSm90Rows ? tile : Match::kByDefault;
    case Override::kSm80:
      return c.engine == Engine::kSm80 ? tile : Match::kByDefault;
    case Override::kTorch:
    case Override::kNone:
      break;
  }
  return Match::kByDefault;
}

bool is_excluded(const Override& o, Engine engine) {
  switch (o.kind) {
    case Override::kAll:
    case Override::kNone:
      return false;
    case Override::kSm90:
      // A named tile is one of conv_rows or of conv_sm90.
      if (engine == Engine::kSm90Block) return o.tile_m != 0;
      if (engine == Engine::kSm90Rows) return o.tile_m && !o.rows;
      return engine == Engine::kSm90 && o.rows;
    case Override::kSm80:
      return engine == Engine::kSm90Block || engine == Engine::kSm90Rows || engine == Engine::kSm90;
    case Override::kTorch:
      return engine != Engine::kTorch && engine != Engine::kTwoLaunches;
  }
  return false;
}

}  // namespace resnet_fused::cuda
