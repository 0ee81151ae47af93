// Words and numbers, put together: what plans say of themselves.
#pragma once
#include <iomanip>
#include <sstream>
#include <string>

namespace resnet_fused::cuda {

template <typename... Args>
std::string sentence(const Args&... args) {
  std::ostringstream s;
  (s << std::fixed << std::setprecision(1) << ... << args);
  return s.str();
}

}  // namespace resnet_fused::cuda
