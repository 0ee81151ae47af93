#include "registry.h"

#include <map>

namespace cuda_primitives {

namespace {

std::map<std::string, Launch>& primitives() {
  static std::map<std::string, Launch> map;
  return map;
}

}  // namespace

Primitive::Primitive(const char* name, Launch launch) { primitives()[name] = launch; }

void launch(const std::string& name, const Call& call) { primitives().at(name)(call); }

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const auto& [name, launch] : primitives()) all.push_back(name);
  return all;
}

}  // namespace cuda_primitives
