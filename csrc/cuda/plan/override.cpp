#include "cuda/plan/override.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace resnet_fused::cuda {

namespace {

bool can_be_named(const Planner& planner) { return planner.engine != Engine::kTwoLaunches; }

// 90 for "sm90" and "sm90:rows"; 0 for torch.
int32_t folder_of(const Planner& planner) {
  return std::strncmp(planner.name, "sm", 2) == 0 ? std::atoi(planner.name + 2) : 0;
}

bool names_folder(const Override& o) { return o.tile < 0 && !std::strchr(planner_of(o.engine).name, ':'); }

// What of `name` follows "<prefix>:"; null if it does not begin so.
const char* after(const std::string& name, const std::string& prefix) {
  return name.rfind(prefix + ":", 0) == 0 ? name.c_str() + prefix.size() + 1 : nullptr;
}

// The number of parts, 0 for anything that is not a positive number.
int32_t parts_of(const char* text) {
  char* end = nullptr;
  const long parts = std::strtol(text, &end, 10);
  return *text >= '0' && *text <= '9' && *end == '\0' && parts <= INT32_MAX ? static_cast<int32_t>(parts) : 0;
}

// Whether `name` is the planner's, with a tile and a number of parts perhaps, which `choice` receives.
bool parse(const std::string& name, const Planner& planner, Override& choice) {
  choice = {Override::kNamed, planner.engine};
  if (name == planner.name) return true;
  const char* rest = after(name, planner.name);
  if (!rest) return false;
  for (choice.tile = 0; choice.tile < planner.named_tiles; ++choice.tile) {
    const std::string tile = planner.tile_name(choice.tile);
    if (rest == tile) return true;
    if (const char* parts = planner.can_split ? after(rest, tile) : nullptr) {
      choice.splits = parts_of(parts);
      return choice.splits > 0;
    }
  }
  return false;
}

}  // namespace

std::string engine_names() {
  std::string names = "all", tiles;
  const std::vector<const Planner*>& table = planners();
  for (auto at = table.rbegin(); at != table.rend(); ++at) {  // the simplest first
    const Planner& planner = **at;
    if (!can_be_named(planner)) continue;
    names += std::string(", ") + planner.name;
    for (int32_t tile = 0; tile < planner.named_tiles; ++tile)
      tiles += std::string(", ") + planner.name + ":" + planner.tile_name(tile);
  }
  return names + tiles;
}

Override override_of(const char* text) {
  const std::string name = text ? text : "";
  if (name.empty()) return {};
  if (name == "all") return {Override::kAll};
  Override choice;
  for (const Planner* planner : planners())
    if (can_be_named(*planner) && parse(name, *planner, choice)) return choice;
  throw std::runtime_error(
      "RESNET_FUSED_CUDA_ENGINE is " + name + "; one of " + engine_names() +
      " expected; tiles of sm80 and sm90 may end in a number of parts, as in sm80:64x64:4. Unset it to "
      "let the plan choose");
}

std::string to_string(const Override& o) {
  if (o.kind != Override::kNamed) return o.kind == Override::kAll ? "all" : "";
  const Planner& planner = planner_of(o.engine);
  std::string text = planner.name;
  if (o.tile >= 0) text += ":" + planner.tile_name(o.tile);
  if (o.splits) text += ":" + std::to_string(o.splits);
  return text;
}

bool is_named(const Override& o, const Planner& planner) {
  if (o.kind != Override::kNamed) return false;
  return planner.engine == o.engine || (names_folder(o) && folder_of(planner) == folder_of(planner_of(o.engine)));
}

Match match_of(const Override& o, const Planner& planner, int32_t tile) {
  if (o.kind == Override::kAll) return Match::kEnabled;
  const Planner& named = planner_of(o.engine);
  if (o.kind == Override::kNone || !folder_of(planner) || folder_of(planner) != folder_of(named))
    return Match::kByDefault;
  // A block competes with two launches of the named kernels.
  if (planner.task == Task::kBasicBlock && planner.engine != o.engine) return Match::kEnabled;
  return o.tile >= 0 && tile != o.tile ? Match::kOtherTile : Match::kNamed;
}

bool is_excluded(const Override& o, const Planner& planner) {
  const int32_t folder = folder_of(planner);
  if (o.kind != Override::kNamed || !folder) return false;
  const Planner& named = planner_of(o.engine);
  if (!folder_of(named)) return true;
  // Older kernels run where the named one cannot.
  if (folder != folder_of(named)) return folder > folder_of(named);
  if (is_named(o, planner)) return false;
  return planner.task == named.task || o.tile >= 0;
}

}  // namespace resnet_fused::cuda
